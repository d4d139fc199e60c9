"""What a server is asked for: where it listens, and its limits."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass, field

from ssamba.utils.errors import ConfigError

MIB = 1 << 20


@dataclass(frozen=True)
class ServeOptions:
    """Settings of a server, each an option of ``ssamba serve``. Raises ``ConfigError`` for a value out of range."""

    host: str = field(default="127.0.0.1", metadata={"help": "address to listen at"})
    port: int = field(default=8000, metadata={"help": "port to listen at, 0: any that is free"})
    max_mib: float = field(default=32.0, metadata={"help": "largest request in MiB"})
    max_seconds: float = field(default=300.0, metadata={"help": "longest recording"})
    in_flight: int = field(default=64, metadata={"help": "requests under way at a time, more are refused (503)"})
    rate: float = field(default=600.0, metadata={"help": "requests a minute and client, 0: any number"})
    time_limit: float = field(default=60.0, metadata={"help": "seconds that a request may take"})
    batch: int = field(default=32, metadata={"help": "recordings that go through the model together"})
    wait_ms: float = field(default=5.0, metadata={"help": "milliseconds that a recording waits for others"})
    workers: int = field(default=2, metadata={"help": "decoding processes"})
    stop_seconds: float = field(default=30.0, metadata={"help": "seconds that requests under way get at SIGTERM"})
    log: str = field(default="text", metadata={"help": "form of the lines on stderr", "choices": ("text", "json")})
    allow_host: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        whole = {"port": (0, 65535), "in_flight": (1, 4096), "batch": (1, 1024), "workers": (1, 64)}
        for name, (low, high) in whole.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{_option(name)} {getattr(self, name)}: give {low} to {high}")
        real = {
            "max_mib": (0.001, 1024.0),
            "max_seconds": (0.1, 86400.0),
            "rate": (0.0, 1e6),
            "time_limit": (0.1, 3600.0),
            "wait_ms": (0.0, 1000.0),
            "stop_seconds": (0.0, 3600.0),
        }
        for name, (least, most) in real.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and least <= value <= most):
                raise ConfigError(f"{_option(name)} {value:g}: give {least:g} to {most:g}")

    @property
    def max_bytes(self) -> int:
        """Bytes of the largest request."""
        return int(self.max_mib * MIB)

    @property
    def loopback(self) -> bool:
        """Whether programs of this machine alone can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")

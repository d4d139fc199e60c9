"""The dimensions of a model: a frozen, validated dataclass that is stored as ``config.json`` next to the weights."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from ssamba.audio.front_end import PUBLISHED, FrontEnd
from ssamba.utils.errors import ConfigError, nearest
from ssamba.utils.terminal import shorten

WIDTHS = {"tiny": 192, "small": 384, "base": 768}
ENCODERS = {"ssamba": 24, "ssast": 12}
"""Kinds of encoder, and the blocks of their published sizes."""
HEAD_WIDTH = 64
"""Width of an attention head in the published sizes of SSAST."""
DROP_PATH = {"ssamba": 0.1, "ssast": 0.0}
DECAYS = ("free", "tied")
"""A rate for each state, or one for each channel: state n of 1 .. N then decays n times as fast."""
SCANS = {"both": 2, "alternating": 1, "forward": 1}
"""How a pair of blocks scans, and the directions of each block."""
FORMAT = 1
FIELDS_WITH_DEFAULT = ("depth", "dt_rank", "attention_heads", "decoder_depth")
"""Whole numbers that may be 0: the published value, and no decoder."""
MAX_VALUE, MAX_DEPTH = 1_000_000, 1000
"""Upper bounds of all values and of depths: a damaged file must not ask for an endless model."""
LONGEST_KEY = 60
"""Nothing longer is compared with the names of the fields."""
MAX_PARAMETERS = 10_000_000_000
"""Of a model, a hundred times ``base``, 40 GB in float32: values that are possible one by one may not be together."""


@dataclass(frozen=True)
class Config:
    """Everything that the weights depend on, and the front end that they were trained with.

    Units: ``frames`` and the time sides are log-mel frames of 10 ms, the frequency sides are mel bins, ``sample_rate``
    is in Hz, ``drop_path`` is the rate of the last block. ``state_size`` to ``residual_scale`` are SSAMBA's,
    ``attention_heads`` SSAST's. A ``depth``, ``dt_rank`` or ``attention_heads`` of 0 and a ``drop_path`` of -1 stand
    for the published value. ``residual_scale`` is the factor on the residual stream at the end of each pair: 2 in the
    reference, 1 for a stream that only sums up. ``decoder_depth`` blocks fill in the masked patches of pretraining,
    which the encoder then does not read; with 0, the reference, it reads a learned token in their place.
    ``decay`` and ``scan``: see ``DECAYS`` and ``SCANS``; with ``alternating`` even blocks run left to right and odd
    ones right to left, with ``forward`` all run left to right. ``scan`` decides ``directions``, and ``directions`` 1
    alone means ``forward``.
    ``sample_rate``, ``mel_bins``, ``mean`` and ``std`` make the ``front_end``. Raises ``ConfigError`` on values that no
    model can have.
    """

    encoder: str = "ssamba"
    width: int = 192
    depth: int = 0
    frames: int = 1024
    patch_frequency: int = 16
    patch_time: int = 16
    stride_frequency: int = 16
    stride_time: int = 16
    state_size: int = 16
    expand: int = 2
    conv_width: int = 4
    dt_rank: int = 0
    directions: int = 2
    residual_scale: int = 2
    attention_heads: int = 0
    decoder_depth: int = 0
    drop_path: float = -1.0
    mel_bins: int = PUBLISHED.mel_bins
    sample_rate: int = PUBLISHED.sample_rate
    mean: float = PUBLISHED.mean
    std: float = PUBLISHED.std
    decay: str = "free"
    scan: str = "both"

    def __post_init__(self) -> None:
        if not isinstance(self.encoder, str) or self.encoder not in ENCODERS:
            raise ConfigError(f"encoder is {shorten(self.encoder)}: give {' or '.join(ENCODERS)}")
        for field in dataclasses.fields(self):
            if field.type != "str":
                self._check(field.name, field.type == "int")
        for name, known in (("decay", DECAYS), ("scan", SCANS)):
            if not isinstance(getattr(self, name), str) or getattr(self, name) not in known:
                raise ConfigError(f"{name} is {shorten(getattr(self, name))}: give {' or '.join(known)}")
        self._fill()
        if self.encoder == "ssamba" and self.depth % 2:
            raise ConfigError(f"depth is {self.depth}: blocks come in pairs, give an even number")
        if self.encoder == "ssamba" and self.decoder_depth % 2:
            raise ConfigError(f"decoder_depth is {self.decoder_depth}: blocks come in pairs, give an even number")
        if self.directions > 2:
            raise ConfigError(f"directions is {self.directions}: give 2, or 1 for scans from left to right alone")
        if self.encoder == "ssast" and (self.decay != "free" or self.scan == "alternating"):
            raise ConfigError(f"decay {self.decay} and scan {self.scan} are SSAMBA's: leave them out for ssast")
        if self.residual_scale > 2:
            raise ConfigError(f"residual_scale is {self.residual_scale}: give 2 as in the reference, or 1")
        if self.encoder == "ssast" and self.width % self.attention_heads:
            raise ConfigError(f"attention_heads is {self.attention_heads}: give a divisor of the width {self.width}")
        if self.mel_bins < self.patch_frequency or self.frames < self.patch_time:
            raise ConfigError(
                f"a patch of {self.patch_frequency} x {self.patch_time} (mel bins x frames) does not fit into "
                f"{self.mel_bins} x {self.frames}: give more frames or smaller patches"
            )
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"drop_path is {self.drop_path}: give a rate from 0 to below 1")
        _ = self.front_end  # refuses what no front end can have
        if self.approximate_parameters > MAX_PARAMETERS:
            raise ConfigError(
                f"width {self.width}, {self.depth} blocks and a grid of {self.grid[0]} x {self.grid[1]} patches make "
                f"about {self.approximate_parameters:.0e} parameters, beyond {MAX_PARAMETERS:.0e}: give smaller values"
            )

    def _fill(self) -> None:
        """Put the published values where the fields leave them open."""
        transformer = self.encoder == "ssast"
        published = {
            "depth": ENCODERS[self.encoder],
            "dt_rank": math.ceil(self.width / 16),
            "attention_heads": max(1, self.width // HEAD_WIDTH) if transformer else 0,
        }
        for name, value in published.items():
            if getattr(self, name) == 0:
                object.__setattr__(self, name, value)
        if self.scan != "both":
            object.__setattr__(self, "directions", SCANS[self.scan])
        elif self.directions == 1:
            object.__setattr__(self, "scan", "forward")
        if self.drop_path == -1:
            object.__setattr__(self, "drop_path", DROP_PATH[self.encoder])

    def _check(self, name: str, whole: bool) -> None:
        value = getattr(self, name)
        good = isinstance(value, int) if whole else isinstance(value, (int, float))
        if isinstance(value, bool) or not good:
            raise ConfigError(f"{name} is {shorten(value)}: give a {'whole ' if whole else ''}number")
        if whole and value < (0 if name in FIELDS_WITH_DEFAULT else 1):
            raise ConfigError(f"{name} is {value}: give a positive number")
        largest = MAX_DEPTH if name.endswith("depth") else MAX_VALUE
        if not -largest <= value <= largest:  # NaN too
            raise ConfigError(f"{name} is {shorten(value)}: give a number of at most {largest}")

    @classmethod
    def tiny(cls, **changes: Any) -> Config:
        """Width 192: 7.1 M parameters with both pretraining heads (SSAST 5.9 M)."""
        return cls(width=WIDTHS["tiny"], **changes)

    @classmethod
    def small(cls, **changes: Any) -> Config:
        """Width 384: 25.8 M parameters with both pretraining heads (SSAST 22.3 M)."""
        return cls(width=WIDTHS["small"], **changes)

    @classmethod
    def base(cls, **changes: Any) -> Config:
        """Width 768: 98.3 M parameters with both pretraining heads (SSAST 87.2 M)."""
        return cls(width=WIDTHS["base"], **changes)

    @property
    def front_end(self) -> FrontEnd:
        """From waveforms to the features that the model reads."""
        return FrontEnd(self.sample_rate, self.mel_bins, mean=self.mean, std=self.std)

    @property
    def inner(self) -> int:
        """Inner channels of one block (E)."""
        return self.expand * self.width

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along (frequency, time)."""
        return (
            (self.mel_bins - self.patch_frequency) // self.stride_frequency + 1,
            (self.frames - self.patch_time) // self.stride_time + 1,
        )

    @property
    def window_seconds(self) -> float:
        """Length of the window in which longer recordings are read: the frames that whole patches cover, 10 ms each."""
        return self.front_end.seconds_between((self.grid[1] - 1) * self.stride_time + self.patch_time)

    @property
    def approximate_parameters(self) -> int:
        """Weights of a model with both pretraining heads, to a few percent; takes no memory."""
        d, e = self.width, self.inner
        block = 12 * d * d
        if self.encoder == "ssamba":
            scan = e * (self.conv_width + 3 + 3 * self.state_size + 2 * self.dt_rank)
            block = 3 * d * e + self.directions * scan
        ends = 3 * d * self.patch_size + 2 * d * d
        return (self.depth + self.decoder_depth) * block + (self.grid[0] * self.grid[1] + 2) * d + ends

    @property
    def patch_size(self) -> int:
        """Values in one patch."""
        return self.patch_frequency * self.patch_time

    @property
    def tiles(self) -> bool:
        """Whether patches lie side by side, without overlap or gap."""
        return (self.stride_frequency, self.stride_time) == (self.patch_frequency, self.patch_time)

    def replace(self, **changes: Any) -> Config:
        """A copy with some values changed, validated again. One of ``directions`` and ``scan`` sets the other too."""
        if "directions" in changes and "scan" not in changes:
            changes["scan"] = "both"
        elif "scan" in changes and "directions" not in changes:
            changes["directions"] = SCANS.get(changes["scan"], 2)
        return dataclasses.replace(self, **changes)

    def decoder(self) -> Config:
        """The dimensions of the pretraining decoder, which is a chain of the encoder's blocks."""
        return self.replace(depth=self.decoder_depth, decoder_depth=0, drop_path=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``config.json``; ``decay`` and ``scan`` only where older versions have no such model."""
        values = dataclasses.asdict(self)
        if self.decay == "free":
            del values["decay"]
        if self.scan != "alternating":
            del values["scan"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "config") -> Config:
        """The reverse of ``to_dict``. Raises ``ConfigError`` naming ``source`` and the nearest known key."""
        known = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(f"{source}: unknown value {shorten(key)}{nearest(str(key)[:LONGEST_KEY], known)}")
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None

"""Every environment variable that the operators read, each by one function, at the time of the call.

==================  =====================================  ===========================================================
Name                Values (default)                       Meaning
==================  =====================================  ===========================================================
SSAMBA_BACKEND      auto, or the name of a form (auto)     which form of the operators runs: :func:`backend`
SSAMBA_CACHE_DIR    a folder (the user's cache folder)     where compiled kernels are kept: :func:`cache_dir`
SSAMBA_GPU_SCAN     nvrtc, triton (nvrtc)                  which form of scan and norm runs on a GPU: :func:`gpu_scan`
SSAMBA_LPC          1, 2, 4, 8, 16, 32 (by size)           lanes that share a channel: :func:`lanes_per_channel`
SSAMBA_CUT          name=integer,... (by size)             tiling of the tensor-core forward scan: :func:`scan_tiling`
SSAMBA_BACKWARD     form,name=integer,... (by size)        form and tiling of the scan's backward: :func:`scan_backward`
SSAMBA_PROJ         warps,blocks,name=integer (by size)    launch of the fused projection: :func:`projection_launch`
SSAMBA_GATE         pieces, five integers (fixed)          tile of the product with the gate: :func:`gate_tile`
                    apart                                  no next pair's x: :func:`makes_next_input`
SSAMBA_STATES       given, forward, backward (both)        where states are rounded up: :func:`rounded_states`
SSAMBA_FP32         form,name=integer,... (by size)        float32 products on a GPU: :func:`fp32_products`
SSAMBA_BIAS         mixer, product (mixer)                 the input product's bias on a GPU: :func:`bias_gradient`
SSAMBA_OVERLAP      0, 1 (1)                               kernels start before others end: :func:`overlaps_launches`
TRITON_INTERPRET    0, 1 (0)                               Triton's own, for tests: :func:`interprets_triton`
==================  =====================================  ===========================================================

The first two are for users. The others exist for measurements and tests: a value that a kernel cannot take is refused
by the compiler, not here.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def backend() -> str:
    """``SSAMBA_BACKEND``: the form of the operators, ``auto`` by default.

    The name is returned as given; the dispatcher knows which ones exist.
    """
    return os.environ.get("SSAMBA_BACKEND", "auto")


def cache_dir() -> Path:
    """``SSAMBA_CACHE_DIR``: the folder of compiled kernels; it need not exist.

    By default ``ssamba/kernels`` in the user's cache folder: ``$XDG_CACHE_HOME`` or ``~/.cache``, on macOS
    ``~/Library/Caches``, on Windows ``%LOCALAPPDATA%``. Raises RuntimeError when the home folder is unknown.
    """
    return _cache("kernels")


def lengths_dir() -> Path:
    """The folder of recordings' lengths: that of ``SSAMBA_CACHE_DIR``, by default ``ssamba/lengths``; as above."""
    return _cache("lengths")


def _cache(name: str) -> Path:
    given = os.environ.get("SSAMBA_CACHE_DIR")
    if given:
        return Path(given).expanduser().absolute()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        user = Path(local) if local else Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        user = Path.home() / "Library" / "Caches"
    else:
        user = Path(os.environ.get("XDG_CACHE_HOME", ""))
        if not user.is_absolute():  # unset, or a relative path, which the XDG specification says to ignore
            user = Path.home() / ".cache"
    return user / "ssamba" / name


def gpu_scan() -> str:
    """``SSAMBA_GPU_SCAN``: ``triton`` forbids the scan, the norm and the preparation of weights in CUDA C++.

    The portable ones run then. The default is ``nvrtc``.
    """
    return os.environ.get("SSAMBA_GPU_SCAN") or "nvrtc"


def lanes_per_channel() -> int | None:
    """``SSAMBA_LPC``: lanes of a warp that share a channel's states; None, the default, leaves it to the size.

    Any value, also one that is out of range, rules out the tensor-core forward scan. Raises ValueError unless it is
    an integer.
    """
    given = os.environ.get("SSAMBA_LPC")
    return int(given) if given else None


def scan_tiling() -> dict[str, int]:
    """``SSAMBA_CUT``: values in place of the chosen tiling of the tensor-core forward scan, by default none.

    ``warps=8,stages=4`` gives ``{"warps": 8, "stages": 4}``; the names are ``split``, ``warps``, ``stages``,
    ``blocks``, ``chunks`` and ``adds`` (``ScanTiling`` explains them). ``chunks`` also holds for the form with
    states in lanes. Raises ValueError when it cannot be parsed.
    """
    pairs = (part.split("=") for part in os.environ.get("SSAMBA_CUT", "").split(",") if part)
    return {name.strip(): int(value) for name, value in pairs}


def scan_backward() -> tuple[str, dict[str, int]]:
    """``SSAMBA_BACKWARD``: the form of the scan's backward, and values in place of its chosen tiling; by default none.

    ``mma,warps=4,movm=1`` gives ``("mma", {"warps": 4, "movm": 1})``; forms are ``lanes`` and ``mma``, names those of
    ``BackwardTiling``. Raises ValueError when it cannot be parsed.
    """
    form, *given = os.environ.get("SSAMBA_BACKWARD", "").split(",")
    pairs = (part.split("=") for part in given if part)
    return form.strip(), {name.strip(): int(value) for name, value in pairs}


def projection_launch() -> dict[str, int | str]:
    """``SSAMBA_PROJ``: values in place of the chosen launch of the fused convolution and projection, by default none.

    ``4,1,slices=4,rows=16`` gives ``{"warps": 4, "blocks": 1, "slices": 4, "rows": 16}``; the names are those of
    ``ProjectionTiling``, and the first two, warps of a block and blocks of a multiprocessor, may stand without theirs.
    ``taps=runs`` (``near``, ``bulk``) names no integer. Raises ValueError when it cannot be parsed.
    """
    parts = [part.strip() for part in os.environ.get("SSAMBA_PROJ", "").split(",") if part.strip()]
    named = [part if "=" in part else f"{name}={part}" for name, part in zip(("warps", "blocks"), parts, strict=False)]
    pairs = (part.split("=") for part in (*named, *parts[2:]))
    return {name.strip(): value.strip() if name.strip() == "taps" else int(value) for name, value in pairs}


def gate_tile() -> tuple[int, ...] | None:
    """``SSAMBA_GATE``: tokens, channels, depth, warps and stages of the product that makes z and gates (``GateTile``).

    ``pieces`` forbids that product, so that z is in memory by pieces: an empty tuple. None, the default, leaves the
    tile to the kernel; so does what :func:`makes_next_input` reads. Raises ValueError unless it is five integers
    (``128,256,64,8,3``).
    """
    given = os.environ.get("SSAMBA_GATE")
    if not given or given in ("pieces", "apart"):
        return () if given == "pieces" else None
    tokens, channels, depth, warps, stages = map(int, given.split(","))
    return tokens, channels, depth, warps, stages


def makes_next_input() -> bool:
    """``SSAMBA_GATE``: whether gate and output in one pass go on to the next pair's x; ``apart`` forbids it."""
    return os.environ.get("SSAMBA_GATE") != "apart"


def rounded_states() -> tuple[str, ...]:
    """``SSAMBA_STATES``: the passes in which a GPU may add states that are zero: ``forward``, ``backward``, or both.

    ``given`` stands for neither, and both are the default. Raises ValueError for any other name.
    """
    given = os.environ.get("SSAMBA_STATES") or "forward,backward"
    names = tuple(name.strip() for name in given.split(","))
    if unknown := [name for name in names if name not in ("given", "forward", "backward")]:
        raise ValueError(f"SSAMBA_STATES: there is no {unknown[0]!r}; use given, forward or backward")
    return tuple(name for name in names if name != "given")


def fp32_products() -> tuple[str, dict[str, int]]:
    """``SSAMBA_FP32``: the form of float32 products on a GPU, and values in place of its tiling; by default none.

    ``split,columns=64`` gives ``("split", {"columns": 64})``. Forms: ``torch`` (torch's own products alone), ``split``
    and ``fused`` (three TF32 products, the second operand split before or inside the kernel). Names are those of
    ``ProductTile``, and ``parts`` of a sum. Raises ValueError when it cannot be parsed.
    """
    form, *given = os.environ.get("SSAMBA_FP32", "").split(",")
    pairs = (part.split("=") for part in given if part)
    return form.strip(), {name.strip(): int(value) for name, value in pairs}


def bias_gradient() -> str:
    """``SSAMBA_BIAS``: what gives the gradient of the input product's bias where a GPU's mixer can.

    ``mixer``, the default: the kernels of its backward. ``product``: a sum of its own, as elsewhere. Raises ValueError
    for any other name.
    """
    given = os.environ.get("SSAMBA_BIAS") or "mixer"
    if given not in ("mixer", "product"):
        raise ValueError(f"SSAMBA_BIAS: there is no {given!r}; use mixer or product")
    return given


def overlaps_launches() -> bool:
    """``SSAMBA_OVERLAP``: whether a GPU may start a kernel's blocks while the kernel before it ends; 0 forbids it."""
    return os.environ.get("SSAMBA_OVERLAP", "1") != "0"


def interprets_triton() -> bool:
    """``TRITON_INTERPRET``: whether Triton's kernels run in its interpreter, on the CPU; by default they do not."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"

"""Sizes, argument tables and scratch areas of the CPU kernels: what the Python side and the kernels agree on.

Arguments reach a kernel as a table of int64: addresses, and strides in bytes. The first five places are the same in
every table. Importing this module does not import Numba.
"""

from __future__ import annotations

from enum import IntEnum

BLOCK = 64  # channels of one task
CHUNK = 32  # steps between two kept states
CONV_CHUNK = 64  # steps of one task of the convolution, and of one chunk of its backward pass
GROUP = 8  # states that stay in registers together
LANES = 16
VECTOR = 4 * LANES  # bytes
ROW = 4 * BLOCK  # bytes of one step, or of one state, of all channels of the task
COLUMN = CHUNK * VECTOR  # bytes of one quantity of sixteen channels over a chunk
PLANE = COLUMN * BLOCK // LANES  # bytes of one quantity over a chunk, [vector][step][lane]
GROUP_PLANE = CHUNK * GROUP * VECTOR  # bytes of one group's states of sixteen channels over a chunk
SKEW = 2048  # bytes: half of the 4096 at which a load looks like an earlier store and waits for it


class ScanField(IntEnum):
    """Places in the argument table. ``*_B``, ``*_L``, ``*_R``, ``*_K`` are strides, always in that order."""

    NEXT, SLOT, SCRATCH, SCRATCH_BYTES, TASKS = range(5)
    LENGTH, DIRECTIONS, BLOCKS, CHANNELS, STATES = range(5, 10)
    A, D, BIAS, CHECKPOINTS = range(10, 14)
    U, U_B, U_L, U_R, U_K = range(14, 19)
    DT, DT_B, DT_L, DT_R, DT_K = range(19, 24)
    B, B_B, B_L, B_R, B_K = range(24, 29)
    C, C_B, C_L, C_R, C_K = range(29, 34)
    Z, Z_B, Z_L, Z_R, Z_K = range(34, 39)
    Y, Y_B, Y_L, Y_R, Y_K = range(39, 44)  # the backward kernel reads y's gradient here
    DU, DU_B, DU_L, DU_R, DU_K = range(44, 49)
    DDT, DDT_B, DDT_L, DDT_R, DDT_K = range(49, 54)
    DB, DB_B, DB_L, DB_R, DB_K = range(54, 59)
    DC, DC_B, DC_L, DC_R, DC_K = range(59, 64)
    DZ, DZ_B, DZ_L, DZ_R, DZ_K = range(64, 69)
    DA, DD, DBIAS, PART = range(69, 73)  # PART: bytes between the channel blocks' shares of dB and dC
    R_FROM, R_TO, CARRY = range(73, 76)  # directions to run; states to start from and to leave, or 0
    BACKWARDS = 76  # of a single direction: the blocks, as bits, that it runs through from right to left
    SIZE = 77


class Plane(IntEnum):
    """Offsets in the scratch area, in planes; the parts that depend on N follow at ``END``."""

    DELTA, DRIVE, OUT, DERIVATIVE, INPUT, GRADIENT, TO_DRIVE, TO_DELTA = range(8)
    END = 8


def backwards(blocks: int, alternating: bool) -> int:
    """The bits of ``BACKWARDS``: with alternating scans every second block."""
    return sum(1 << k for k in range(1, blocks, 2)) if alternating else 0


def padded_states(states: int) -> int:
    """N rounded up to whole groups."""
    return -(-states // GROUP) * GROUP


def scan_scratch_bytes(states: int) -> int:
    """Size of one worker's scratch area: see the offsets below."""
    n = padded_states(states)
    rows = 2 * CHUNK * n * 4 + VECTOR
    return Plane.END * PLANE + 2 * ROW + 4 * n * ROW + rows + 2 * CHUNK * n * VECTOR + SKEW + 2 * GROUP_PLANE


class ConvField(IntEnum):
    """Places in the argument table: addresses, and strides in bytes (``*_B``, ``*_L``, ``*_R``, ``*_K``)."""

    NEXT, SLOT, SCRATCH, SCRATCH_BYTES, TASKS = range(5)
    LENGTH, DIRECTIONS, BLOCKS, CHANNELS, WIDTH = range(5, 10)
    WEIGHT, BIAS, DWEIGHT, DBIAS = range(10, 14)
    X, X_B, X_L, X_R, X_K = range(14, 19)
    U, U_B, U_L, U_R, U_K = range(19, 24)  # the backward kernel reads u's gradient here
    DX, DX_B, DX_L, DX_R, DX_K = range(24, 29)
    R_FROM, R_TO = range(29, 31)  # directions to run (forward)
    BACKWARDS = 31  # of a single direction: the blocks, as bits, whose taps reach to the right
    SIZE = 32


def conv_scratch_bytes(width: int, directions: int) -> int:
    """Size of one worker's scratch area: gradients before SiLU of a chunk and its surroundings, then dw and db."""
    return directions * (CONV_CHUNK + width - 1) * ROW + directions * (width + 1) * ROW

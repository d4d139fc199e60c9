"""Turns float32 tensors into argument tables, allocates results and scratch areas, and runs the kernels."""

from __future__ import annotations

from array import array
from typing import NamedTuple

import torch
from torch import Tensor

from ssamba.ops.jit import openmp
from ssamba.ops.mamba.cpu import layout
from ssamba.ops.mamba.cpu.kernels import kernel
from ssamba.ops.mamba.cpu.layout import ConvField, ScanField


class ScanInputs(NamedTuple):
    """What a scan reads, float32 in the kernels (shapes: ``naive.selective_scan``)."""

    u: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    dt_bias: Tensor

    @property
    def states(self) -> int:
        """N."""
        return self.B.shape[-1]

    @property
    def tied(self) -> bool:
        """Whether A has one rate a channel for several states."""
        return self.A.shape[-1] == 1 and self.states > 1

    def with_dense_parameters(self) -> ScanInputs:
        """A, D and the bias contiguous: the kernels give only the others strides."""
        return self._replace(A=self.A.contiguous(), D=self.D.contiguous(), dt_bias=self.dt_bias.contiguous())


def _place(table: list[int], field: int, x: Tensor, dims: tuple[int, int, int, int]) -> None:
    """Writes the address and the byte strides of ``dims`` (positions of B, L, R, K; -1 for none).

    A dimension of size 1 gets stride 0, so that a tensor of one direction serves as either.
    """
    strides = [4 * x.stride(d) if d >= 0 and x.shape[d] > 1 else 0 for d in dims]
    table[field : field + 5] = [x.data_ptr(), *strides]


_BY_DIRECTION = (0, 1, 2, 3)  # (B, L, R, K, ...)
_BY_BLOCK = (0, 1, -1, 2)  # (B, L, K, E)


def _run(name: str, table: list[int], scratch_bytes: int, tasks: int) -> None:
    if tasks == 0:
        return
    threads = openmp.thread_count(tasks)
    size = -(-scratch_bytes // 64) * 64
    scratch = torch.empty(threads * size + 64, dtype=torch.uint8, device="cpu")
    table[ScanField.SCRATCH] = -(-scratch.data_ptr() // 64) * 64
    table[ScanField.SCRATCH_BYTES], table[ScanField.TASKS] = size, tasks
    arguments = array("q", table)
    openmp.run(kernel(name), arguments.buffer_info()[0], threads)


def rows(x: Tensor) -> Tensor:
    """In float32 with neighbouring channels next to each other, which is all that the kernels ask for."""
    x = x.to(torch.float32)
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _parts(channels: int) -> int:
    return (channels + layout.BLOCK - 1) // layout.BLOCK


# ---- convolution


def _conv_table(x: Tensor, weight_RKWE: Tensor, bias: Tensor, u: Tensor, backwards: int) -> list[int]:
    table = [0] * ConvField.SIZE
    table[ConvField.LENGTH], table[ConvField.BLOCKS], table[ConvField.CHANNELS] = x.shape[1:]
    table[ConvField.DIRECTIONS], table[ConvField.WIDTH] = weight_RKWE.shape[0], weight_RKWE.shape[2]
    table[ConvField.BACKWARDS] = backwards
    table[ConvField.WEIGHT], table[ConvField.BIAS] = weight_RKWE.data_ptr(), bias.data_ptr()
    _place(table, ConvField.X, x, _BY_BLOCK)
    _place(table, ConvField.U, u, _BY_DIRECTION)
    return table


def taps_first(weight_RKEW: Tensor) -> Tensor:
    """The weight as the kernels read it: (R, K, W, E), contiguous."""
    return weight_RKEW.transpose(2, 3).contiguous()


def conv_forward(
    x: Tensor, weight_RKWE: Tensor, bias: Tensor, u: Tensor, directions: tuple[int, int] | None = None,
    backwards: int = 0,
) -> None:  # fmt: skip
    """Fills ``u_BLRKE`` with the convolution and SiLU of ``x_BLKE``, in all or in a range of directions.

    ``u`` may hold a single direction, whichever is asked for. ``backwards``: see ``layout.backwards``.
    """
    table = _conv_table(x, weight_RKWE, bias, u, backwards)
    table[ConvField.R_FROM], table[ConvField.R_TO] = directions or (0, weight_RKWE.shape[0])
    parts = (x.shape[1] + layout.CONV_CHUNK - 1) // layout.CONV_CHUNK
    _run("conv_forward", table, 0, x.shape[0] * x.shape[2] * parts)


def conv_backward(
    du: Tensor, x: Tensor, weight: Tensor, bias: Tensor, backwards: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias. Weight and bias have one share for each clip, added in the clips' order."""
    batch, _, blocks, channels = x.shape
    directions, _, _, width = weight.shape
    weight, bias = taps_first(weight), bias.contiguous()
    dx = x.new_empty(x.shape)
    dweight = x.new_empty((batch, directions, blocks, width, channels))
    dbias = x.new_empty((batch, directions, blocks, channels))
    table = _conv_table(x, weight, bias, du, backwards)
    table[ConvField.DWEIGHT], table[ConvField.DBIAS] = dweight.data_ptr(), dbias.data_ptr()
    _place(table, ConvField.DX, dx, _BY_BLOCK)
    _run("conv_backward", table, layout.conv_scratch_bytes(width, directions), batch * blocks * _parts(channels))
    return dx, dweight.sum(0).transpose(2, 3).contiguous(), dbias.sum(0)


# ---- scan


def states_shape(u: Tensor, n: int) -> tuple[int, ...]:
    """Shape of the n states that the backward pass starts its chunks from; only the kernels know their order."""
    batch, length, directions, blocks, channels = u.shape
    chunks = (length + layout.CHUNK - 1) // layout.CHUNK
    states = layout.padded_states(n)
    return batch * blocks * _parts(channels), directions, chunks, states, layout.BLOCK


def _scan_table(inputs: ScanInputs, z: Tensor | None, y: Tensor, states: Tensor | None, backwards: int) -> list[int]:
    u, dt, A, B, C, D, dt_bias = inputs
    table = [0] * ScanField.SIZE
    table[ScanField.LENGTH : ScanField.CHANNELS + 1] = u.shape[1], A.shape[0], *u.shape[3:]
    table[ScanField.R_TO] = A.shape[0]
    table[ScanField.STATES], table[ScanField.BACKWARDS] = inputs.states, backwards
    table[ScanField.A], table[ScanField.D], table[ScanField.BIAS] = A.data_ptr(), D.data_ptr(), dt_bias.data_ptr()
    table[ScanField.CHECKPOINTS] = 0 if states is None else states.data_ptr()
    for field, x in ((ScanField.U, u), (ScanField.DT, dt), (ScanField.B, B), (ScanField.C, C)):
        _place(table, field, x, _BY_DIRECTION)
    _place(table, ScanField.Y, y, _BY_BLOCK)
    if z is not None:
        _place(table, ScanField.Z, z, _BY_BLOCK)
    return table


def scan_forward(inputs: ScanInputs, z: Tensor | None, y: Tensor, states: Tensor | None, backwards: int = 0) -> None:
    """Fills ``y_BLKE`` and, unless None, the states for the backward pass. ``backwards``: see ``layout.backwards``."""
    inputs = inputs.with_dense_parameters()
    _run_forward(inputs, _scan_table(inputs, z, y, states, backwards))


def scan_part(inputs: ScanInputs, z: Tensor, y: Tensor, direction: int, carry: Tensor, backwards: int = 0) -> None:
    """One direction over one part of the sequence. The scan starts from ``carry`` (see ``carry_shape``) and updates it.

    ``u``, ``dt``, ``B`` and ``C`` hold this direction only, the parameters all. Direction 1 of two must run over a part
    after direction 0, whose result it finds in ``y``.
    """
    inputs = inputs.with_dense_parameters()
    table = _scan_table(inputs, z, y, None, backwards)
    table[ScanField.R_FROM], table[ScanField.R_TO] = direction, direction + 1
    table[ScanField.CARRY] = carry.data_ptr()
    _run_forward(inputs, table)


def _run_forward(inputs: ScanInputs, table: list[int]) -> None:
    batch, _, _, blocks, channels = inputs.u.shape
    scratch = layout.scan_scratch_bytes(inputs.states)
    _run("tied_forward" if inputs.tied else "scan_forward", table, scratch, batch * blocks * _parts(channels))


def carry_shape(batch: int, blocks: int, channels: int, states: int) -> tuple[int, ...]:
    """Shape of one direction's states between two parts of a sequence."""
    return batch * blocks * _parts(channels), layout.padded_states(states), layout.BLOCK


def scan_backward(
    dy: Tensor, inputs: ScanInputs, z: Tensor | None, states: Tensor, backwards: int = 0
) -> tuple[Tensor, ...]:
    """Gradients in the order of the inputs, then z's (empty without z). Shares of clips and blocks add in order."""
    inputs = inputs.with_dense_parameters()
    u, n = inputs.u, inputs.states
    batch, length, directions, blocks, channels = u.shape
    parts = _parts(channels)
    table = _scan_table(inputs, z, dy, states, backwards)
    du, ddt = (u.new_empty((directions, blocks, batch, length, channels)).permute(2, 3, 0, 1, 4) for _ in range(2))
    dB, dC = (u.new_empty((parts, directions, blocks, batch, length, n)) for _ in range(2))
    dz = u.new_empty(0) if z is None else z.new_empty(z.shape)
    dA = u.new_empty((batch, directions, blocks, inputs.A.shape[-1], channels))
    dD, dbias = (u.new_empty((batch, directions, blocks, channels)) for _ in range(2))
    for field, x in ((ScanField.DU, du), (ScanField.DDT, ddt)):
        _place(table, field, x, _BY_DIRECTION)
    for field, x in ((ScanField.DB, dB), (ScanField.DC, dC)):
        _place(table, field, x[0], (2, 3, 0, 1))
    if z is not None:
        _place(table, ScanField.DZ, dz, _BY_BLOCK)
    table[ScanField.PART] = 4 * dB.stride(0)
    table[ScanField.DA], table[ScanField.DD], table[ScanField.DBIAS] = dA.data_ptr(), dD.data_ptr(), dbias.data_ptr()
    _run(
        "tied_backward" if inputs.tied else "scan_backward", table, layout.scan_scratch_bytes(n), batch * blocks * parts
    )
    dA = dA.sum(0).transpose(2, 3).contiguous()
    dB, dC = (x.sum(0).permute(2, 3, 0, 1, 4) for x in (dB, dC))
    return du, ddt, dA, dB, dC, dD.sum(0), dbias.sum(0), dz

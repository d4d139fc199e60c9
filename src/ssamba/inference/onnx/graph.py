"""A small writer of ONNX graphs: every call adds a node and returns the name of its output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 18, 8
"""Operator set and file format of 2022, the first with LayerNormalization and with Split into equal parts."""

SHARED_BYTES = 4096
"""Unnamed constants up to this size are compared with the earlier ones."""

Value = str
"""A value of the graph: the name under which nodes read it."""
Shape = Sequence[int | str | None]
"""Sizes of a value; those that are open have a name, or none."""


class Graph:
    """Nodes and constants of one graph, or of the body of a loop.

    ``graph("Add", a, b)`` adds a node and returns its output. A body (``body``) may read the values of the graph around
    it by their names. Small constants that are equal are stored once.
    """

    def __init__(self, prefix: str = "") -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.scope = ""
        """Where in the model the next nodes belong, such as ``pairs.3``: the first part of their names."""
        self._prefix = prefix
        self._shapes: dict[tuple[int | Value, ...], Value] = {}
        self._known: dict[tuple[str, tuple[int, ...], bytes] | None, Value] = {}

    def __call__(self, operator: str, *inputs: Value, **attributes: Any) -> Value:
        """Add a node with one output."""
        return self.several(operator, 1, *inputs, **attributes)[0]

    def several(self, operator: str, outputs: int, *inputs: Value, **attributes: Any) -> list[Value]:
        """Add a node with that many outputs."""
        name = f"{self._prefix}{self.scope}/{operator}_{len(self.nodes)}".removeprefix("/")
        names = [name] if outputs == 1 else [f"{name}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), names, name=name, **attributes))
        return names

    def constant(self, array: np.ndarray, name: str | None = None) -> Value:
        """A constant of the array's type and shape."""
        array = np.ascontiguousarray(array)
        key = (array.dtype.str, array.shape, array.tobytes()) if name is None and array.nbytes <= SHARED_BYTES else None
        if key in self._known:
            return self._known[key]
        name = name or f"{self._prefix}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        if key is not None:
            self._known[key] = name
        return name

    def integers(self, *values: int) -> Value:
        """A vector of int64: a shape, axes, borders of a slice."""
        return self.constant(np.array(values, dtype=np.int64))

    def integer(self, value: int) -> Value:
        """One int64, without dimensions."""
        return self.constant(np.array(value, dtype=np.int64))

    def number(self, value: float) -> Value:
        """One float32, without dimensions."""
        return self.constant(np.array(value, dtype=np.float32))

    def double(self, value: float) -> Value:
        """One float64, without dimensions."""
        return self.constant(np.array(value, dtype=np.float64))

    def reshape(self, value: Value, *shape: int | Value) -> Value:
        """Another shape of the same values; a size is a number, or a vector of the graph that holds one."""
        if shape not in self._shapes:
            fixed = [size for size in shape if not isinstance(size, str)]
            if len(fixed) == len(shape):
                self._shapes[shape] = self.integers(*fixed)
            else:
                parts = [size if isinstance(size, str) else self.integers(size) for size in shape]
                self._shapes[shape] = self("Concat", *parts, axis=0)
        return self("Reshape", value, self._shapes[shape])

    def slice(self, value: Value, axis: int, start: int, stop: int | None = None) -> Value:
        """``start`` to ``stop`` (None: the end) along one axis."""
        last = np.iinfo(np.int64).max if stop is None else stop
        return self("Slice", value, self.integers(start), self.integers(last), self.integers(axis))

    def linear(self, rows_Tx: Value, weight_yx: Value, bias_y: Value) -> Value:
        """(T, x) -> (T, y), as torch's ``linear``."""
        return self("Gemm", rows_Tx, weight_yx, bias_y, transB=1)

    def body(self, name: str) -> Graph:
        """An empty body, whose values have names of their own."""
        return Graph(prefix=f"{self._prefix}{name}/")

    def name_output(self, value: Value, name: Value) -> None:
        """Give a value the name under which the graph returns it."""
        self.nodes.append(helper.make_node("Identity", [value], [name], name=name))

    def finish(self, name: str, inputs: dict[Value, Shape], outputs: dict[Value, Shape]) -> GraphProto:
        """The graph, from inputs to outputs, all float32, with the shape of each."""
        entries, results = (
            [helper.make_tensor_value_info(value, TensorProto.FLOAT, shape) for value, shape in side.items()]
            for side in (inputs, outputs)
        )
        return helper.make_graph(self.nodes, name, entries, results, initializer=self.constants)

"""A traced pass cut at the model's layers: layers alike are compiled once, and called in turn.

Compiling costs what the code is long, and most of a model is one layer many times. What a segment
takes from outside, weights among it, are its arguments.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

MOST_CALLS = 10  # of layers in a pass: each call costs about 10 µs
FEW_LAYERS = 8  # compiling these at once takes no longer than compiling three segments
SIZE_LIMIT = 2**24  # of what is dynamic; from 0 on
NUMBERED = re.compile(r"(.*?\.\d+)(\.|$)")  # the outermost module with a number: a layer
SYMBOL = re.compile(r"\b[su]\d+\b")


class HandsOnMore(Exception):
    """More than tensors would go from one segment to another."""


@dataclass(frozen=True)
class Segment:
    """Some nodes of a traced graph, one after the other, as a graph by itself."""

    module: GraphModule
    inputs: list[Node]  # of the whole graph: tensors that it takes
    outputs: list[Node]  # and gives

    def examples(self) -> tuple[torch.Tensor, ...]:
        """Arguments of the sizes that the whole was traced with."""
        return tuple(_example(node.meta["val"]) for node in self.inputs)

    def dynamic_shapes(self) -> tuple[dict[int, Any], ...]:
        """Of `torch.export.export`: what changed when the whole was traced changes here."""
        return tuple(
            {
                place: _dim(size)
                for place, size in enumerate(node.meta["val"].shape)
                if isinstance(size, torch.SymInt)
            }
            for node in self.inputs
        )

    def text(self) -> str:
        """What it does with arguments of which form: the same for segments that are alike."""
        numbers: dict[Node, int] = {}
        lines = []
        for node in self.module.graph.nodes:
            numbers[node] = len(numbers)
            if node.op == "placeholder":
                lines.append(form(node.meta["val"]))
            elif node.op == "get_attr":
                part = self.module.get_submodule(node.target)
                lines.append(part.print_readable(print_output=False))
            else:
                given = map_arg((node.args, node.kwargs), lambda node: f"%{numbers[node]}")
                lines.append(f"{node.op} {node.target} {given}")
        sizes: dict[str, str] = {}
        return SYMBOL.sub(
            lambda found: sizes.setdefault(found[0], f"size {len(sizes)}"), "\n".join(lines)
        )


def cut(program: torch.export.ExportedProgram) -> list[Segment]:
    """The segments of a pass, in the order in which they run.

    A layer is the outermost module with a number; what lies before, between and behind layers is a
    segment as well. A few layers go together where there are many. The whole is one segment where
    layers are few or don't follow one another, or where more than tensors would be handed on.
    """
    graph = program.graph_module
    nodes = [
        node for node in graph.graph.nodes if node.op == "call_function" and not _is_size(node)
    ]
    try:
        return [_segment(graph, some) for some in _together(nodes)]
    except HandsOnMore:
        return [_segment(graph, nodes)]


def _together(nodes: list[Node]) -> Iterable[list[Node]]:
    runs = [(layer, list(run)) for layer, run in groupby(nodes, _layer)]
    layers = len({layer for layer, _ in runs if layer is not None})
    if layers <= FEW_LAYERS or len(runs) > 2 * layers + 1:
        return [nodes]
    together = []
    for are_layers, some in groupby(runs, lambda run: run[0] is not None):
        parts = [run for _, run in some]
        size = _group(len(parts)) if are_layers else 1
        together += [sum(parts[i : i + size], []) for i in range(0, len(parts), size)]
    return together


def _group(layers: int) -> int:
    """How many layers make a segment: a divisor, so that all have as many; few calls."""
    sizes = range(1, layers + 1)
    return next(size for size in sizes if layers % size == 0 and layers // size <= MOST_CALLS)


def _layer(node: Node) -> str | None:
    for path, _ in (node.meta.get("nn_module_stack") or {}).values():
        if found := NUMBERED.match(path):
            return found[1]
    return None


def _segment(whole: GraphModule, nodes: list[Node]) -> Segment:
    own = set(nodes)
    from_outside = [
        given
        for given in dict.fromkeys(given for node in nodes for given in node.all_input_nodes)
        if given not in own and given.op != "get_attr"
    ]
    inputs = [node for node in from_outside if not _is_size(node)]
    for size in from_outside:
        if _is_size(size) and _place_of(size, inputs) is None:
            inputs += [node for node in _tensors_behind(size) if node not in (*inputs, *nodes)]
    if not all(_is_tensor(node) for node in inputs):
        raise HandsOnMore
    graph, copies = Graph(), {}
    for number, node in enumerate(inputs):
        copies[node] = graph.placeholder(f"input_{number}")
        copies[node].meta["val"] = node.meta["val"]

    def copy(node: Node) -> Node:
        if node not in copies:
            place = _place_of(node, inputs) if _is_size(node) else None
            if place is not None:
                tensor, dim = place
                size = torch.ops.aten.sym_size.int
                copies[node] = graph.call_function(size, (copies[tensor], dim))
            else:
                for given in node.all_input_nodes:
                    copy(given)
                copies[node] = graph.node_copy(node, copies.__getitem__)
        return copies[node]

    for node in nodes:
        copy(node)
    outputs = [node for node in nodes if any(_is_used_outside(user, own) for user in node.users)]
    if not all(_is_tensor(node) for node in outputs):
        raise HandsOnMore
    graph.output(tuple(copies[node] for node in outputs))
    return Segment(GraphModule(whole, graph), inputs, outputs)


def _is_used_outside(user: Node, own: set[Node]) -> bool:
    """A size of a tensor is no use of it: each segment finds it where it needs it."""
    return user not in own and not _is_size(user)


def _is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _is_size(node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.SymInt | torch.SymBool | torch.SymFloat | int)


def _place_of(size: Node, inputs: Iterable[Node]) -> tuple[Node, int] | None:
    """A tensor among the inputs, and its dimension, that has this size."""
    wanted = size.meta["val"]
    if not isinstance(wanted, torch.SymInt):
        return None
    for node in inputs:
        if _is_tensor(node):
            for dim, found in enumerate(node.meta["val"].shape):
                if isinstance(found, torch.SymInt) and found.node.expr == wanted.node.expr:
                    return node, dim
    return None


def _tensors_behind(size: Node) -> list[Node]:
    """The tensors that a size is computed from."""
    found = []
    for node in size.all_input_nodes:
        found += _tensors_behind(node) if _is_size(node) else [node]
    return found


def _example(like: torch.Tensor) -> torch.Tensor:
    shape, stride = [_hint(size) for size in like.shape], [_hint(step) for step in like.stride()]
    return torch.empty_strided(shape, stride, dtype=like.dtype, device=like.device).zero_()


def _hint(size: int | torch.SymInt) -> int:
    return size.node.hint if isinstance(size, torch.SymInt) else size


def _dim(size: torch.SymInt) -> Any:
    """A dimension that goes from 0 on, as that of the whole does, or a sum with such a one."""
    expression = size.node.expr
    (symbol,) = expression.free_symbols
    factor, more = expression.coeff(symbol), expression.subs(symbol, 0)
    if expression != factor * symbol + more:
        return torch.export.Dim.AUTO
    dim = dim_from_zero(str(symbol))
    dim = dim if factor == 1 else int(factor) * dim
    return dim if more == 0 else dim + int(more)


def dim_from_zero(name: str) -> Any:
    """A dimension of any size, 0 and 1 included."""
    return torch.export.Dim(name, min=0, max=SIZE_LIMIT)


def form(tensor: torch.Tensor) -> str:
    """Of a tensor what compiled code depends on."""
    return f"{list(tensor.shape)} {list(tensor.stride())} {tensor.dtype}"

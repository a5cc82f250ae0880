"""Of a traced graph: what is the same is computed once."""

from __future__ import annotations

from collections.abc import Container

from torch.fx import Graph, Node


def merge_equal(graph: Graph, targets: Container) -> None:
    """Have one node stand for all that call the same of `targets` with the same arguments."""
    known: dict[tuple, Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in targets:
            continue
        first = known.setdefault((node.target, node.args, tuple(node.kwargs.items())), node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)

"""Batched matrix products with a common factor as single products, where processors do those faster."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

_SAME = (aten.alias.default, aten.detach.default, aten.view.default, aten.expand.default)
# Matrices that are at least so wide keep a processor as busy one after the other.
_NARROW = 32


def fold_repeated(graph: fx.Graph) -> None:
    """Replace ``bmm(A, B)`` of narrow matrices where those of A are all one, or those of B, by one product.

    Many vectors at once give such products wherever a matrix that they share, such as the data, meets one
    that depends on the vector.
    """
    for node in list(graph.find_nodes(op="call_function", target=aten.bmm.default)):
        left, right = node.args
        count, rows, inner = left.meta["val"].shape
        columns = right.meta["val"].shape[2]
        with graph.inserting_before(node):
            call = graph.call_function
            if columns < _NARROW and (matrix := _repeated(left)) is not None:
                beside = call(aten.permute.default, (right, [1, 0, 2]))
                beside = call(aten.reshape.default, (beside, [inner, count * columns]))
                product = call(aten.mm.default, (matrix, beside))
                product = call(aten.reshape.default, (product, [rows, count, columns]))
                product = call(aten.permute.default, (product, [1, 0, 2]))
            elif rows < _NARROW and (matrix := _repeated(right)) is not None:
                below = call(aten.reshape.default, (left, [count * rows, inner]))
                product = call(aten.mm.default, (below, matrix))
                product = call(aten.reshape.default, (product, [count, rows, columns]))
            else:
                continue
        node.replace_all_uses_with(product, propagate_meta=True)
        graph.erase_node(node)
    for node in graph.find_nodes(op="call_function", target=aten.view.default):
        node.target = aten.reshape.default  # the memory of a product may have another order
    graph.eliminate_dead_code()


def _repeated(node: Any) -> fx.Node | None:
    """The matrix ``(n, m)`` of which a node ``(k, n, m)`` is an expansion."""
    shape = node.meta["val"].shape
    while isinstance(node, fx.Node) and node.meta["val"].shape == shape and node.target in _SAME:
        node = node.args[0]
    return node if isinstance(node, fx.Node) and node.meta["val"].shape == shape[1:] else None

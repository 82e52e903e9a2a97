"""Products with several vectors by one pass through the kept graph, where that is faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ihvp_torch._tree import named_leaves
from ihvp_torch._vector import Product, Tensors, row_by_row

# On a processor a pass for many vectors saves calls, which is most of what a small problem costs; a larger
# one leaves the cache, and its batched matrix products are the slower ones. Measured with networks of
# P = 650 to 85,002 and 1 to 1,500 examples: up to five times as fast below so many numbers, slower above.
_HOST_PROBLEM, _HOST_TILE = 1 << 15, 1 << 18
# Other devices wait for the calls at any size, so that memory alone sets the bound.
_DEVICE_TILE = 1 << 25


def rows_at_once(tensors: Tensors, batch: Any) -> int:
    """How many vectors go through the graph together: a matter of the parameters' and the batch's sizes."""
    numbers: int = sum(tensor.numel() for tensor in tensors)
    numbers += sum(leaf.numel() for _, leaf in named_leaves(batch) if isinstance(leaf, Tensor))
    if tensors[0].device.type != "cpu":
        return max(1, _DEVICE_TILE // numbers)
    return _HOST_TILE // numbers if numbers <= _HOST_PROBLEM else 1


def together(single: Product, several: Callable[[Tensor], Tensor], at_once: Callable[[], int]) -> Product:
    """``single`` for vectors; rows ``(k, P)`` by ``several`` where it is faster and torch can.

    ``several`` keeps the graph. ``torch.vmap``, on which it rests, does not know every operation, and asks
    for more memory: whatever fails is done row by row, where errors are the user's own.
    """
    one_by_one, refused = row_by_row(single), False

    def product(v: Tensor, last: bool) -> Tensor:
        nonlocal refused
        size = 1 if v.ndim == 1 or len(v) < 3 or refused else at_once()
        if size > 1:
            try:
                tiles = [several(tile) for tile in v.split(size)]
                return tiles[0] if len(tiles) == 1 else torch.cat(tiles)
            except Exception:
                refused = True
        return one_by_one(v, last)

    return product

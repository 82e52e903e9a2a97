"""Products with several vectors by one pass through the kept graph, where that is faster."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ihvp_torch._graph import storage
from ihvp_torch._tree import leaves_of
from ihvp_torch._vector import Tensors, row_by_row

# On a processor so many entries of one value are in the cache together, and eight vectors or more share an
# operation at any size of it: measured with networks of P = 650 to 669,706 and 50 to 1,500 examples, four
# times as fast as one by one at the lower end and 1.0 to 1.5 times at the upper. Beyond, memory counts.
_HOST_TILE, _HOST_FEWEST, _HOST_WIDEST = 1 << 19, 8, 1 << 19
# Compiled, one vector costs no calls either, and fewer vectors fit.
_COMPILED_TILE, _FEWEST = 1 << 20, 4
# Other devices wait for the calls at any size, so that memory alone sets the bound.
_DEVICE_TILE = 1 << 25


def widest(tensors: Tensors, saved: Iterable[Tensor], batch: Any) -> int:
    """Entries of the largest value on the way to a product: a parameter's part, or one kept for it."""
    data = {storage(leaf) for leaf in leaves_of(batch)}
    kept = (tensor for tensor in saved if storage(tensor) not in data)
    return max(1, *(int(tensor.numel()) for tensor in (*tensors, *kept)))


def rows_at_once(widest: int, device: torch.device) -> int:
    """How many vectors go through the graph together.

    ``widest`` is the number of entries of the largest value on the way to one product.
    """
    if device.type != "cpu":
        return max(1, _DEVICE_TILE // widest)
    return max(_HOST_FEWEST, _HOST_TILE // widest) if widest <= _HOST_WIDEST else 1


def compiled_rows(count: int, widest: int, device: torch.device) -> int:
    """How many vectors a program takes: a power of two, so that few programs serve all counts."""
    most = (_COMPILED_TILE if device.type == "cpu" else _DEVICE_TILE) // widest
    if count < 2 or most < _FEWEST:
        return 1
    return int(min(1 << (count - 1).bit_length(), 1 << (most.bit_length() - 1)))


def together(
    single: Callable[[Tensor, bool], Tensor], several: Callable[[Tensor], Tensor], at_once: Callable[[], int]
) -> Callable[[Tensor, bool], Tensor]:
    """``single`` for vectors; rows ``(k, P)`` by ``several`` where it is faster and possible.

    ``several`` keeps the graph, and asks for more memory: whatever fails is done row by row, where errors are
    the user's own.
    """
    one_by_one, refused = row_by_row(single), False

    def product(v: Tensor, last: bool) -> Tensor:
        nonlocal refused
        size = 1 if v.ndim == 1 or len(v) < 3 or refused else at_once()
        if size > 1:
            try:
                tiles = [several(tile) for tile in v.tensor_split(math.ceil(len(v) / size))]
                return tiles[0] if len(tiles) == 1 else torch.cat(tiles)
            except Exception:
                refused = True
        return one_by_one(v, last)

    return product

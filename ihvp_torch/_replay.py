"""Products at many batches, by the operations of one of them."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

from ihvp.backend import Batch
from ihvp.errors import TracedValue
from ihvp_torch._batch import to_device
from ihvp_torch._compile import batch_key, surroundings
from ihvp_torch._parameters import live_tensors, parameters_of
from ihvp_torch._rows import rows_at_once
from ihvp_torch._tape import CannotPlay, Tape
from ihvp_torch._tree import fill, leaves_of, structure

_log = logging.getLogger("ihvp")

# A recording takes as long as a few products, and as much memory as all values on the way to one.
_FIRST, _MOST = 8, 1 << 24
# Relative differences from this power of the machine epsilon on are no rounding.
_ROUNDING = 0.75


class Replayed:
    """``product(batch, v)``, linear in v, for many batches at parameters that stay as they are.

    Once some batches of the same shapes have come, the operations for one are recorded. Where they give the
    product of the next batch, too, they are all that is done from then on: no module is called and no graph
    is built, which is most of what a small product takes.
    """

    def __init__(self, product: Callable[[Batch, Tensor], Tensor], params: Any) -> None:
        self._product = product
        self._device = parameters_of(params).tensors[0].device
        self._read = live_tensors(params)
        self._versions = _versions(self._read)
        self._last: tuple[Any, Hashable] = None, None  # what the last batch was like, and its kind
        self._made: Counter[Hashable] = Counter()
        # By shapes, a tape and whether it was found right; None where there is none.
        self._tapes: dict[Hashable, tuple[Tape, bool] | None] = {}

    def __call__(self, batch: Batch, v: Tensor) -> Tensor:
        batch = to_device(batch, self._device)
        found = leaves_of(batch)
        tensors = [leaf for leaf in found if isinstance(leaf, Tensor)]
        kind = self._kind(batch, found, v)
        tape, right = self._tapes.get(kind) or (None, False)
        if tape is not None and right:
            if peek_interpreter_stack() is not None:
                raise TracedValue("What a call needs")
            try:
                return self._play(tape, tensors, v)
            except Exception as error:  # the product itself says what is wrong
                self._leave_out(kind, error)
        product = self._product(batch, v)
        if kind is None or (tape is None and kind in self._tapes):
            return product
        try:
            if tape is not None:
                self._compare(self._play(tape, tensors, v), product)
                self._tapes[kind] = tape, True
            self._made[kind] += 1
            if self._made[kind] == _FIRST:
                self._tapes[kind] = self._recorded(batch, found, v), False
        except Exception as error:
            self._leave_out(kind, error)
        return product

    def _leave_out(self, kind: Hashable, error: Exception) -> None:
        self._tapes[kind] = None
        _log.debug("Products of %r with batches are not replayed: %r", self._product, error)

    def _kind(self, batch: Batch, found: list[Any], v: Tensor) -> Hashable:
        """What a tape is for; None where nothing may be recorded."""
        if self._versions is None or self._versions != _versions(self._read):
            return None
        like = [structure(batch), v.ndim, v.dtype, surroundings(), *map(_like, found)]
        if self._last[0] != like:
            try:
                self._last = like, (batch_key(batch, found), *like[1:4])
            except TypeError:
                self._last = None, None
        return self._last[1]

    def _recorded(self, batch: Batch, found: list[Any], v: Tensor) -> Tape:
        def through(inputs: Any) -> list[Tensor]:
            *tensors, vector = inputs
            following = iter(tensors)
            filled = (next(following) if isinstance(leaf, Tensor) else leaf for leaf in found)
            return [self._product(fill(batch, filled), vector)]

        tensors = [leaf for leaf in found if isinstance(leaf, Tensor)]
        vector = v if v.ndim == 1 else v[:, 0].contiguous()
        return Tape(through, [*tensors, vector], len(tensors), _MOST)

    def _play(self, tape: Tape, tensors: list[Tensor], v: Tensor) -> Tensor:
        with torch.inference_mode(False):
            if v.ndim == 1:
                (product,) = tape.run([*tensors, v])
                return v * 0 if product is None else product
            rows, size = v.T.contiguous(), rows_at_once(tape.widest, self._device)
            tiles = rows.tensor_split(math.ceil(len(rows) / size))
            return torch.cat([part for tile in tiles for part in tape.play([*tensors, tile])]).T

    def _compare(self, found: Tensor, expected: Tensor) -> None:
        error, size = float((found - expected).norm()), float(expected.norm())
        if not error <= torch.finfo(found.dtype).eps ** _ROUNDING * size:
            raise CannotPlay(f"products that differ by {error:.1e} of {size:.1e}")


def _like(leaf: Any) -> Any:
    """What two leaves have in common where they may follow each other; a new object where that is unknown."""
    if not isinstance(leaf, Tensor):
        return leaf if isinstance(leaf, (str, int, float)) else object()
    return type(leaf), leaf.shape, leaf.stride(), leaf.dtype, leaf.is_inference(), leaf.device


def _versions(tensors: list[Tensor]) -> list[int] | None:
    """How often each was written to; None where one does not count it."""
    return None if any(t.is_inference() for t in tensors) else [t._version for t in tensors]

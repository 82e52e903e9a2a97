"""Products that are eager until they have taken as long as a compilation does: the rule for renting skis.

Whatever is asked for later, that takes no more than about twice the time of the better choice (Karlin,
Manasse, Rudolph and Sleator 1988).
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable
from time import perf_counter

import torch
from torch import Tensor

from ihvp_torch._compile import CompiledCurvature, Compiler
from ihvp_torch._fallback import FirstThatWorks

_log = logging.getLogger("ihvp")

# So many products of an operator are eager: about what the comparison with the program takes.
_FIRST = 4
# Of so many the fastest counts, where both kinds of products are compared once in a process.
_TIMED = 5
# Beyond, memory and large matrix products are what takes the time, and a program needs the memory once more.
_WIDEST = 1 << 20
# Relative differences from this power of the machine epsilon on are no rounding.
_ROUNDING = 0.75


PATIENT = Compiler()
"""The programs of all backends of this process that compile where it pays."""


class EagerFirst:
    """The ``eager`` product ``∇² loss · v``, until one by programs pays, and agrees with it.

    For each number of vectors the program is compared with the graph that the eager product keeps: whatever
    the loss reads elsewhere than in parameters and batch is as it was when that graph was recorded.
    """

    def __init__(
        self, eager: FirstThatWorks, find: Callable[[], CompiledCurvature | None], compiler: Compiler
    ) -> None:
        self._eager, self._find, self._compiler = eager, find, compiler
        self._compiled: CompiledCurvature | None = None
        self._made: Counter[Hashable] = Counter()
        self._seconds: defaultdict[Hashable, float] = defaultdict(float)
        # By number of vectors what the program has read, with versions; None where products stay eager.
        self._seen: dict[Hashable, list[tuple[Tensor, int]] | None] = {}

    def prepare(self) -> None:
        """Do now what the products share."""
        self._eager.prepare()

    def held(self) -> Iterable[Tensor]:
        """The tensors that stay in memory for further products."""
        return (self._compiled or self._eager).held()

    def __call__(self, v: Tensor, last: bool) -> Tensor:
        kind = tuple(v.shape[:-1]), v.dtype
        # A program serves all numbers of vectors up to a power of two, but is not faster for all.
        family = (len(v) - 1).bit_length() if v.ndim == 2 else -1, v.dtype
        if kind not in self._seen and self._made[family] >= _FIRST:
            compiled = self._if_it_pays(kind, family)
            if compiled is not None:
                agrees = self._agrees(compiled, kind, v.detach())
                self._seen[kind] = [(t, t._version) for t in compiled.read()] if agrees else None
        seen = self._seen.get(kind)
        if seen is not None and all(tensor._version == version for tensor, version in seen):
            assert self._compiled is not None
            return self._compiled(v, last)
        seconds, product = _timed(self._eager, v, last)
        self._made[family] += 1
        self._seconds[family] += seconds
        return product

    def _if_it_pays(self, kind: Hashable, family: Hashable) -> CompiledCurvature | None:
        # Looked for only here, because finding it takes as long as a small product.
        if self._compiled is None:
            self._compiled = self._find()
            if self._compiled is None:
                self._seen[kind] = None
                return None
            self._compiled.without, self._compiled.told_at = self._eager, logging.INFO
        programs = self._compiled.programs
        programs.seconds[family] += self._seconds.pop(family, 0.0)
        spent = programs.seconds[family] >= self._compiler.expected
        return self._compiled if programs.right.get(kind, spent) else None

    def _agrees(self, compiled: CompiledCurvature, kind: Hashable, like: Tensor) -> bool:
        v = torch.cos(torch.arange(1, like.numel() + 1)).to(like.dtype).view(like.shape)
        expected = self._eager(v, False)
        try:
            reason = self._objection(compiled, v, expected)
        except Exception as error:
            reason = repr(error)
        if not reason and kind not in compiled.programs.right:
            slower = _fastest(compiled, v) >= _fastest(self._eager, v)
            reason = "compiled ones take as long" if slower else ""
        compiled.programs.right[kind] = not reason
        if reason:
            _log.info("Products of %r with %s stay eager: %s.", compiled.loss, kind, reason)
        return not reason

    def _objection(self, compiled: CompiledCurvature, v: Tensor, expected: Tensor) -> str:
        """What speaks against the product by a program, if anything does."""
        start, before = perf_counter(), compiled.programs.lowered
        widest = compiled.widest()
        if widest is None or widest > _WIDEST:
            return "they cannot be traced" if widest is None else f"their values have {widest} entries"
        if any(program is not None and program.random for program in compiled.programs.values()):
            return "the loss draws numbers"
        product = compiled(v, False)
        if compiled.programs.lowered > before:
            self._compiler.expected = perf_counter() - start
        if not compiled.programs.lowered:
            return "they cannot be compiled"
        error, size = float((product - expected).norm()), float(expected.norm())
        rounding = torch.finfo(v.dtype).eps ** _ROUNDING * size
        return "" if error <= rounding else f"compiled ones differ by {error:.1e} of {size:.1e}"


def _timed(product: Callable[..., Tensor], v: Tensor, last: bool = False) -> tuple[float, Tensor]:
    start = perf_counter()
    result = product(v, last)
    return perf_counter() - start, result


def _fastest(product: Callable[..., Tensor], v: Tensor) -> float:
    return min(_timed(product, v)[0] for _ in range(_TIMED))


@functools.cache
def compiler_is_there() -> bool:
    """Whether there is the C++ compiler that torch takes."""
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    return shutil.which(name) is not None

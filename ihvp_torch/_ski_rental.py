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
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from time import perf_counter

import torch
from torch import Tensor

from ihvp.backend import Batch, Loss
from ihvp_torch._compile import CompiledCurvature, Compiler, Ordinary
from ihvp_torch._parameters import Parameters

_log = logging.getLogger("ihvp")

# Of an operator so many products of a kind are eager: about what the comparison with the program takes.
_FIRST = 4
# Beyond, memory and large matrix products are what takes the time, and a program needs the memory once more.
_WIDEST = 1 << 20
# Relative differences from this power of the machine epsilon on are no rounding.
_ROUNDING = 0.75


class PatientCompiler(Compiler):
    """The programs of all backends of this process, each of which is compiled when that pays."""

    def __init__(self) -> None:
        super().__init__()
        self.expected = 30.0  # seconds that a compilation takes, as the last one has shown

    def __reduce__(self) -> str:  # type: ignore[override]
        return "PATIENT"

    def lasting_curvature(
        self, loss: Loss, parameters: Parameters, batch: Batch, ordinary: Ordinary
    ) -> EagerFirst | None:
        """The product ``∇² loss · v`` for many vectors; None where it is to stay eager."""
        if parameters.tensors[0].device.type != "cpu" or not _on_path():
            return None
        compiled = self.curvature(loss, parameters, batch, ordinary)
        return None if compiled is None else EagerFirst(compiled, self)


class EagerFirst:
    """The product ``∇² loss · v``, eager at first, and by ``compiled`` once that pays, and where it agrees.

    For each kind of vectors the program is compared with the graph that the eager product keeps: whatever
    the loss reads elsewhere than in parameters and batch is as it was when that graph was recorded.
    """

    def __init__(self, compiled: CompiledCurvature, compiler: PatientCompiler) -> None:
        self._compiled, self._compiler, self._programs = compiled, compiler, compiled.programs
        compiled.told_at = logging.INFO
        self._made: Counter[Hashable] = Counter()
        # By number of vectors what the program has read, with versions; None where products stay eager.
        self._seen: dict[Hashable, list[tuple[Tensor, int]] | None] = {}

    def prepare(self) -> None:
        """Do now what the products share."""
        self._compiled.eager()

    def held(self) -> Iterable[Tensor]:
        """The tensors that stay in memory for further products."""
        return self._compiled.held()

    def __call__(self, v: Tensor, last: bool) -> Tensor:
        kind = tuple(v.shape[:-1]), v.dtype
        # A program serves all numbers of vectors up to a power of two, but is not faster for all.
        family = (len(v) - 1).bit_length() if v.ndim == 2 else -1, v.dtype
        if kind not in self._seen and self._pays(kind, family):
            agrees = self._agrees(kind, v.detach())
            self._seen[kind] = [(t, t._version) for t in self._compiled.read()] if agrees else None
        seen = self._seen.get(kind)
        if seen is not None and all(tensor._version == version for tensor, version in seen):
            return self._compiled(v, last)
        seconds, product = _timed(self._compiled.eager(), v)
        self._made[family] += 1
        self._programs.seconds[family] += seconds
        return product

    def _pays(self, kind: Hashable, family: Hashable) -> bool:
        spent = self._programs.seconds[family] >= self._compiler.expected
        return self._programs.right.get(kind, spent) and self._made[family] >= _FIRST

    def _agrees(self, kind: Hashable, like: Tensor) -> bool:
        v = torch.cos(torch.arange(1, like.numel() + 1)).to(like.dtype).view(like.shape)
        eager, expected = _timed(self._compiled.eager(), v)
        try:
            compiled, reason = self._objection(v, expected)
        except Exception as error:
            compiled, reason = eager, repr(error)
        self._programs.right[kind] = not reason
        if not reason and compiled >= eager:
            reason = "compiled ones take as long"
        if reason:
            _log.info("Products of %r with %s stay eager: %s.", self._compiled.loss, kind, reason)
        return not reason

    def _objection(self, v: Tensor, expected: Tensor) -> tuple[float, str]:
        """The time of a product by the program, and what speaks against it, if anything does."""
        start = perf_counter()
        widest = self._compiled.widest()
        if widest is None or widest > _WIDEST:
            return 0.0, "they cannot be traced" if widest is None else f"their values have {widest} entries"
        if any(program is not None and program.random for program in self._programs.values()):
            return 0.0, "the loss draws numbers"
        before = self._programs.lowered
        self._compiled(v, False)
        if self._programs.lowered > before:
            self._compiler.expected = perf_counter() - start
        if not self._programs.lowered:
            return 0.0, "they cannot be compiled"
        seconds, product = _timed(self._compiled, v)
        error, size = float((product - expected).norm()), float(expected.norm())
        rounding = torch.finfo(v.dtype).eps ** _ROUNDING * size
        return seconds, "" if error <= rounding else f"compiled ones differ by {error:.1e} of {size:.1e}"


def _timed(product: Callable[[Tensor, bool], Tensor], v: Tensor) -> tuple[float, Tensor]:
    start = perf_counter()
    result = product(v, False)
    return perf_counter() - start, result


@functools.cache
def _on_path() -> bool:
    """Whether there is the C++ compiler that torch takes."""
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    return shutil.which(name) is not None


PATIENT = PatientCompiler()

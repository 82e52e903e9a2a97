"""A linear map of vectors as two graphs that torch's compiler has lowered."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from ihvp.errors import InvalidOption
from ihvp_torch._trace import Trace
from ihvp_torch._turns import compiling, silently

Lowered = Callable[..., Sequence[Tensor]]


class CannotCompile(Exception):
    """A product has operations that can be traced or compiled in no way."""


class Program:
    """A traced map whose two graphs are compiled at their first use."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._shared: Lowered | None = None
        self._linear: Lowered | None = None

    @property
    def widest(self) -> int:
        """The entries of the largest value on the way to a product."""
        return self.trace.widest

    @property
    def lowered(self) -> bool:
        """Whether it is compiled."""
        return self._linear is not None

    @property
    def random(self) -> bool:
        """Whether it draws numbers."""
        nodes = (*self.trace.shared.graph.nodes, *self.trace.linear.graph.nodes)
        return any(torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ()) for n in nodes)

    def share(self, inputs: Sequence[Tensor], v: Tensor) -> list[Tensor]:
        """What all products with vectors like ``v`` need, all that they need of the inputs included."""
        given = [*inputs, *self.trace.constants]
        with torch.no_grad(), compiling:
            if self._shared is None:
                self._shared = _lower(self.trace.shared, given)
            shared = [*self._shared(*given), *(given[i] for i in self.trace.passed)]
            if self._linear is None:
                self._linear = _lower(self.trace.linear, [*shared, v])
        return shared

    def multiply(self, shared: Sequence[Tensor], v: Tensor) -> Tensor:
        """The product, freshly allocated."""
        assert self._linear is not None
        with torch.no_grad():
            (result,) = self._linear(*shared, v)
        return result


def _lower(module: fx.GraphModule, inputs: Sequence[Tensor]) -> Lowered:
    if all(node.op in ("placeholder", "output") for node in module.graph.nodes):
        untouched: Lowered = module
        return untouched
    from torch._inductor import compile as lower  # a second of importing

    try:
        with silently():  # what the compiler says of its own ways and of the machine
            lowered: Lowered = lower(module, list(inputs))
            lowered(*inputs)  # some of the work waits for the first call
            return lowered
    except Exception as error:
        if any(name in repr(error) for name in ("InvalidCxxCompiler", "TritonMissing")):
            raise InvalidOption(
                "compile",
                True,
                "False where there is no compiler: torch needs g++ or clang for a processor, on the path or "
                f"in the variable CXX, and triton for a GPU, and says: {error}",
            ) from error
        raise CannotCompile from error

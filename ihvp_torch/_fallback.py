"""Several ways to the same product, of which a function's operations may support only some."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ihvp.errors import IhvpError, UnsupportedOperation
from ihvp.shared_context import SharedContext
from ihvp_torch._opaque import UNNAMED, unsupported_operation
from ihvp_torch._vector import Product
from ihvp_torch._weight_norm import PlainWeightNorm


class Memory:
    """The way that last worked for a user's function; a hint only, so forgetting costs time and no more."""

    def __init__(self) -> None:
        self._ways: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()

    def __getitem__(self, function: Any) -> str | None:
        try:
            return self._ways.get(_identity(function))
        except TypeError:  # not hashable, or no weak references
            return None

    def __setitem__(self, function: Any, way: str) -> None:
        with suppress(TypeError):
            self._ways[_identity(function)] = way

    def __reduce__(self) -> tuple[type[Memory], tuple[()]]:
        return Memory, ()


class FirstThatWorks:
    """A product computed in the first way that the function's operations support.

    Of the named ways, in order, ``way()`` does the work that all products share and returns the product; the
    entry of ``function``, which the user gave, in ``memory`` is tried first. Where none works,
    UnsupportedOperation names the operation, and chains what torch said of the first way.
    """

    def __init__(self, ways: Mapping[str, Callable[[], Product]], function: Any, memory: Memory) -> None:
        first = memory[function]
        self._untried = sorted(ways, key=lambda name: name != first)
        self._ways, self._function, self._memory = ways, function, memory
        self._product: Product | None = None
        self._failures: list[RuntimeError] = []

    def prepare(self) -> None:
        """Do now what the products share."""
        self._attempt(lambda product: None)

    def held(self) -> Iterable[Tensor]:
        """The tensors that stay in memory for further products."""
        return () if self._product is None else self._product.held()

    def __call__(self, v: Tensor, last: bool) -> Tensor:
        result: Tensor = self._attempt(lambda product: product(v, last))
        self._memory[self._function] = self._untried[0]
        return result

    def _attempt(self, use: Callable[[Product], Any]) -> Any:
        # A failure holds its frames, and they the graphs of the way that failed: none is kept on return.
        try:
            while self._untried:
                try:
                    if self._product is None:
                        self._product = self._ways[self._untried[0]]()
                    return use(self._product)
                except RuntimeError as error:
                    if not self._failures and not _lacks_derivative(error):
                        raise
                    if isinstance(error, torch.OutOfMemoryError):
                        raise
                    self._failures.append(error)
                self._product = None
                del self._untried[0]
            operation, tried = _name(self._failures), ", ".join(self._ways)
            raise UnsupportedOperation(operation, "torch", tried) from self._failures[0]
        finally:
            if not self._untried:
                self._untried = list(self._ways)
            self._failures.clear()


@contextmanager
def unfused_kernels() -> Iterator[None]:
    """Fused kernels, which have one derivative, give way to compositions of operations that have all.

    Attention and weight normalisation run in their mathematical form, recurrent layers without cuDNN,
    compiled functions eagerly.
    """
    with PlainWeightNorm(), _plain_kernels():
        yield


@contextmanager
def _switched() -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if torch.backends.cudnn.is_available():
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


# Torch has these switches once for all threads.
_plain_kernels = SharedContext(_switched)


def _identity(function: Any) -> Any:
    # Each access to a method makes a new object; the function behind it stays.
    return getattr(function, "__func__", function)


def _lacks_derivative(error: RuntimeError) -> bool:
    return not isinstance(error, IhvpError) and unsupported_operation(error) is not None


def _name(failures: list[RuntimeError]) -> str:
    names = [name for failure in failures if (name := unsupported_operation(failure))]
    return next((name for name in names if name != UNNAMED), UNNAMED)

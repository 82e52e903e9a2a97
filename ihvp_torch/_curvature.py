"""The product ``∇² f · v`` in each of the ways that torch has for it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import get_gradient_edge

from ihvp_torch._derivatives import Function, duals, forward_mode, gradient
from ihvp_torch._fallback import FirstThatWorks, Memory, unfused_kernels
from ihvp_torch._graph import saved_tensors
from ihvp_torch._opaque import refuse_constants, refuse_once_differentiable
from ihvp_torch._rows import rows_at_once, together, widest
from ihvp_torch._tape import Recorded
from ihvp_torch._vector import Product, join, row_by_row, split

# From so many parameters on, memory counts more than the time of a call.
_LARGE = 1 << 16


def reverse_over_reverse(function: Function) -> Product:
    """The gradient's graph once, then one backward pass through it for every product (Pearlmutter 1994)."""
    leaves = function.leaves()
    call = function.bind(leaves)

    def differentiate(structure: Any) -> Sequence[Tensor | None]:
        value = function.evaluate(structure)
        refuse_once_differentiable([value])
        # The factor has a gradient of its own, so that every part of a recorded gradient has a graph.
        gradients = gradient(value, leaves, torch.ones_like(value, requires_grad=True))
        refuse_constants(gradients, [value])
        return gradients

    # Products too run inside `call`: a checkpointed forward pass is repeated during the backward pass.
    gradients = call(differentiate)
    varying = [i for i, part in enumerate(gradients) if part is not None and part.requires_grad]
    outputs: Sequence[Any] = [gradients[i] for i in varying]
    nodes = [output.grad_fn for output in outputs]
    if sum(output.numel() for output in outputs) > _LARGE:
        # The graph needs no values of the gradient; but for small ones torch is faster with them.
        outputs = [get_gradient_edge(output) for output in outputs]
    del gradients

    def backward(cotangents: Sequence[Tensor], last: bool = False) -> Sequence[Tensor | None]:
        seconds: Sequence[Tensor | None] = call(
            lambda _: torch.autograd.grad(
                outputs, leaves, cotangents, retain_graph=not last, allow_unused=True
            )
        )
        return seconds

    def pieces(v: Tensor) -> list[Tensor]:
        parts = split(v, leaves)
        return [parts[i] for i in varying]

    def single(v: Tensor, last: bool) -> Tensor:
        return join(backward(pieces(v), last), leaves)

    if not outputs:
        return Product(lambda v, last: torch.zeros_like(v))
    recorded = Recorded(backward, pieces, leaves)

    @functools.cache
    def at_once() -> int:
        return rows_at_once(widest(leaves, saved_tensors(nodes), function.batch), leaves[0].device)

    def held() -> Iterable[Tensor]:
        return itertools.chain(saved_tensors(nodes), recorded.held())

    return Product(together(single, recorded, at_once), held)


def forward_over_reverse(function: Function) -> Product:
    """The derivative of the gradient along ``v``, one forward and backward pass on dual numbers each."""

    def product(v: Tensor, last: bool) -> Tensor:
        with forward_mode(), forward_ad.dual_level():
            leaves = function.leaves()
            point = duals(leaves, split(v, leaves))
            gradients = function.bind(point)(lambda structure: gradient(function.evaluate(structure), point))
            tangents = [None if part is None else forward_ad.unpack_dual(part).tangent for part in gradients]
            return join(tangents, leaves)

    return Product(row_by_row(product))


def unfused(way: Callable[[Function], Product]) -> Callable[[Function], Product]:
    """``way`` with fused kernels replaced by operations that have every derivative."""

    def prepare(function: Function) -> Product:
        with unfused_kernels():
            inner = way(function)

        def product(v: Tensor, last: bool) -> Tensor:
            with unfused_kernels():
                return inner(v, last)

        return Product(product, inner.held)

    return prepare


WAYS: dict[str, Callable[[Function], Product]] = {
    "reverse over reverse": reverse_over_reverse,
    "forward over reverse": forward_over_reverse,
    "reverse over reverse without fused kernels": unfused(reverse_over_reverse),
    "forward over reverse without fused kernels": unfused(forward_over_reverse),
}


def curvature(function: Function, key: Any, memory: Memory) -> FirstThatWorks:
    """``∇² f`` as a product; ``key`` is the user's function under which ``memory`` keeps the way."""
    return FirstThatWorks({name: partial(way, function) for name, way in WAYS.items()}, key, memory)

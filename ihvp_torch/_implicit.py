"""Values whose derivatives are told to autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ihvp.errors import TracedValue, is_traced
from ihvp_torch._derivatives import Function, gradient
from ihvp_torch._parameters import parameters_of
from ihvp_torch._tree import fill, leaves_of
from ihvp_torch._vector import join, split


def differentiable(function: Callable[..., Any], *inputs: Any) -> Any:
    """The outputs of ``function(*inputs)``, attached to the inputs' tensors by what pulls cotangents back."""
    sources = [_leaves(value) for value in inputs]
    tensors = [leaf for leaves in sources for leaf in leaves if isinstance(leaf, Tensor)]
    if any(map(is_traced, tensors)):
        raise TracedValue("A parameter, a hyperparameter or v")
    outputs, pull_back = function(*inputs)

    def pulled(cotangents: Sequence[Tensor]) -> list[Tensor | None]:
        result: list[Tensor | None] = []
        for leaves, found in zip(sources, pull_back(fill(outputs, cotangents)), strict=True):
            parts = [None] * len(leaves) if found is None else _leaves(found)
            result += [
                None if part is None else torch.as_tensor(part, dtype=leaf.dtype, device=leaf.device)
                for leaf, part in zip(leaves, parts, strict=True)
                if isinstance(leaf, Tensor)
            ]
        return result

    values = leaves_of(outputs)
    return fill(outputs, _Attached.apply(pulled, values, *tensors))


class _Attached(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, pulled: Any, values: Sequence[Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.pulled = pulled
        return tuple(torch.as_tensor(value).detach().clone() for value in values)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        return None, None, *ctx.pulled(cotangents)


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, nn.Module):
        return list(parameters_of(value).tensors)
    return leaves_of(value)


def curvature_gradient(function: Function, x: Tensor, y: Tensor) -> Tensor:
    """``∇ (yᵀ ∇² f x)``, three times in reverse."""
    leaves = function.leaves()

    def third(structure: Any) -> Sequence[Tensor | None]:
        value = function.evaluate(structure)
        slopes = gradient(value, leaves, torch.ones_like(value, requires_grad=True))
        for vector in (x, y):
            pieces = zip(slopes, split(vector, leaves), strict=True)
            terms = [torch.sum(part * piece) for part, piece in pieces if part is not None]
            along = torch.stack(terms).sum() if terms else value.new_zeros(())
            if not along.requires_grad:
                return [None] * len(leaves)
            slopes = torch.autograd.grad(along, leaves, create_graph=vector is x, allow_unused=True)
        return slopes

    return join(function.bind(leaves)(third), leaves)

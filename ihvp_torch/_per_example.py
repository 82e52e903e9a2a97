"""The gradients of single examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ihvp_torch._batch import Examples
from ihvp_torch._derivatives import Function, flat_gradient
from ihvp_torch._fallback import unfused_kernels


def per_example_gradients(function_of: Callable[[Any], Function], examples: Examples) -> Tensor:
    """``(B, P)``: row i is the gradient of the loss on example i, as a batch of one.

    Parameters
    ----------
    function_of : callable
        ``function_of(batch)``: the loss on that batch.
    examples : Examples
    """
    try:
        return _together(function_of, examples)
    except Exception:
        # torch.vmap knows neither branches on values nor every operation. If it was the loss that
        # failed, it fails again here, where its error is its own.
        return _in_turn(function_of, examples)


def _together(function_of: Callable[[Any], Function], examples: Examples) -> Tensor:
    point = function_of(None).point()

    def loss(leaves: tuple[Tensor, ...], *tensors: Tensor) -> Tensor:
        function = function_of(examples.assemble([tensor.unsqueeze(0) for tensor in tensors]))
        value: Tensor = function.bind(leaves)(function.evaluate)
        return value

    axes = (None, *(0 for _ in examples.tensors))
    # Fused attention has no batching rule.
    with unfused_kernels():
        gradients = torch.func.vmap(torch.func.grad(loss), axes)(tuple(point), *examples.tensors)
    return torch.cat([part.reshape(len(examples), -1) for part in gradients], dim=1)


def _in_turn(function_of: Callable[[Any], Function], examples: Examples) -> Tensor:
    single = ([tensor[i : i + 1] for tensor in examples.tensors] for i in range(len(examples)))
    return torch.stack([flat_gradient(function_of(examples.assemble(tensors))) for tensors in single])

"""The gradients of single examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ihvp_torch._batch import Examples
from ihvp_torch._derivatives import Function, flat_gradient
from ihvp_torch._fallback import unfused_kernels
from ihvp_torch._vector import vector_dtype

# So many numbers of gradients and examples together. On a processor more leave the cache, and fewer pay for
# calls: measured with P = 2,410 to 669,706, both 1.2 times as long at a quarter and at four times as many.
_HOST_TILE, _DEVICE_TILE = 1 << 22, 1 << 26


def per_example_gradients(function_of: Callable[[Any], Function], examples: Examples) -> Tensor:
    """``(B, P)``: row i is the gradient of the loss on example i, as a batch of one.

    ``function_of(batch)`` is the loss on that batch.
    """
    try:
        return _together(function_of, examples)
    except Exception:
        # torch.vmap knows neither branches on values nor every operation. If it was the loss that
        # failed, it fails again here, where its error is its own.
        return _in_turn(function_of, examples)


def _together(function_of: Callable[[Any], Function], examples: Examples) -> Tensor:
    point = function_of(None).point()
    sizes = [tensor.numel() for tensor in point]
    rows = _rows_at_once(sum(sizes), examples, point[0].device)
    result = torch.empty(0)
    axes = (None, *(0 for _ in examples.tensors))
    # Fused attention has no batching rule.
    with unfused_kernels():
        each = torch.func.vmap(torch.func.grad(loss_of_one(function_of, examples)), axes)
        for start in range(0, len(examples), rows):
            tile = [tensor[start : start + rows] for tensor in examples.tensors]
            # Data that requires a gradient leaves a graph behind.
            parts = [part.detach().flatten(1) for part in each(tuple(point), *tile)]
            if start == 0:
                result = parts[0].new_empty(len(examples), sum(sizes), dtype=vector_dtype(point))
            torch.cat(parts, dim=1, out=result[start : start + rows])
    return result


def loss_of_one(function_of: Callable[[Any], Function], examples: Examples) -> Callable[..., Tensor]:
    """``loss(leaves, *tensors)``: the loss at ``leaves`` on one example, given by its rows of the tensors."""

    def loss(leaves: tuple[Tensor, ...], *tensors: Tensor) -> Tensor:
        function = function_of(examples.assemble([tensor.unsqueeze(0) for tensor in tensors]))
        value: Tensor = function.bind(leaves)(function.evaluate)
        return value

    return loss


def _rows_at_once(size: int, examples: Examples, device: torch.device) -> int:
    each: int = size + sum(tensor.numel() for tensor in examples.tensors) // len(examples)
    return max(1, (_HOST_TILE if device.type == "cpu" else _DEVICE_TILE) // each)


def _in_turn(function_of: Callable[[Any], Function], examples: Examples) -> Tensor:
    single = ([tensor[i : i + 1] for tensor in examples.tensors] for i in range(len(examples)))
    return torch.stack([flat_gradient(function_of(examples.assemble(tensors))) for tensors in single])

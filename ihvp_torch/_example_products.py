"""Products of the gradients of single examples with vectors, where the gradients are never formed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ihvp_torch._batch import Examples
from ihvp_torch._derivatives import Function, forward_mode
from ihvp_torch._fallback import unfused_kernels
from ihvp_torch._per_example import loss_of_one, per_example_gradients
from ihvp_torch._vector import split

# So many vectors share a forward pass. All of 297 at once took up to 1.8 times as long on a processor, and
# one by one up to 6 times. Memory is taken by the activations of so many examples and vectors.
_VECTORS, _PAIRS = 16, 1 << 13


def example_products(function_of: Callable[[Any], Function], examples: Examples, v: Tensor) -> Tensor:
    """``∇C_i · v`` of each example as a batch of one: ``(B,)`` for ``(P,)``, ``(B, k)`` for ``(P, k)``.

    ``function_of(batch)`` is the loss on that batch.
    """
    v = v.detach()
    try:
        return _pushed(function_of, examples, v.unsqueeze(1) if v.ndim == 1 else v).reshape(-1, *v.shape[1:])
    except Exception:
        # Forward mode and torch.vmap do not know every operation. An error of the loss itself comes again.
        return per_example_gradients(function_of, examples) @ v


def _pushed(function_of: Callable[[Any], Function], examples: Examples, v: Tensor) -> Tensor:
    """The derivatives of the losses along the columns, ``(B, k)``, by dual numbers."""
    point = tuple(function_of(None).point())
    vectors = v.T.contiguous()
    result = v.new_empty(len(examples), v.shape[1])
    rows = _PAIRS // min(_VECTORS, len(vectors))
    axes = (None, *(0 for _ in examples.tensors))
    with unfused_kernels(), forward_mode():
        each = torch.func.vmap(loss_of_one(function_of, examples), axes)
        for start in range(0, len(examples), rows):
            tile = [tensor[start : start + rows] for tensor in examples.tensors]

            def along(*tangents: Tensor, tile: list[Tensor] = tile) -> Tensor:
                pushed: Tensor
                _, pushed = torch.func.jvp(lambda leaves: each(leaves, *tile), (point,), (tangents,))
                return pushed

            pushed = torch.func.vmap(along, chunk_size=_VECTORS)(*split(vectors, point))
            # Data and vectors may require gradients of their own.
            result[start : start + rows] = pushed.T.detach()
    return result

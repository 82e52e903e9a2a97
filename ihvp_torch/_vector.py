"""Between one flat vector and the tensors that it is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Tensors = Sequence[Tensor]


def join(tensors: Sequence[Tensor | None], like: Tensors) -> Tensor:
    """One vector ``(P,)`` of the widest dtype; None stands for zeros of the tensor in ``like``."""
    return torch.cat(
        [
            torch.zeros_like(model).reshape(-1) if tensor is None else _dense(tensor).reshape(-1)
            for tensor, model in zip(tensors, like, strict=True)
        ]
    )


def split(vector: Tensor, like: Tensors) -> list[Tensor]:
    """The inverse of :func:`join`: views of a contiguous vector where the dtypes agree."""
    pieces = vector.contiguous().split([tensor.numel() for tensor in like])
    return [piece.view(tensor.shape).to(tensor.dtype) for piece, tensor in zip(pieces, like, strict=True)]


def multiply(product: Callable[[Tensor, bool], Tensor], v: Tensor) -> Tensor:
    """``product`` of a vector ``(P,)``, or of each column of a block ``(P, k)``.

    ``product(column, last)`` is told which column is the last. The columns of a block result are
    contiguous, so that a block which comes back as the next ``v`` is not copied.
    """
    if v.ndim == 1:
        return product(v, True)
    last = v.shape[1] - 1
    return torch.stack([product(row, i == last) for i, row in enumerate(v.T.contiguous())]).T


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.layout is torch.strided else tensor.to_dense()

"""Between one flat vector and the tensors that it is made of."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ihvp.errors import ParameterError

Tensors = Sequence[Tensor]


@dataclass(frozen=True)
class Product:
    """A linear map of vectors ``(P,)`` and of rows ``(k, P)``."""

    apply: Callable[[Tensor, bool], Tensor]  # apply(v, last); after the last, graphs may be freed
    held: Callable[[], Iterable[Tensor]] = tuple  # the tensors that stay in memory for further products

    def __call__(self, v: Tensor, last: bool) -> Tensor:
        return self.apply(v, last)


def vector_dtype(tensors: Tensors) -> torch.dtype:
    """The dtype of vectors: that which all tensors promote to, and no narrower than float32."""
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def join(tensors: Sequence[Tensor | None], like: Tensors) -> Tensor:
    """One vector ``(P,)`` of :func:`vector_dtype`; None stands for zeros of the tensor in ``like``."""
    dtype = vector_dtype(like)
    return torch.cat(
        [
            (torch.zeros_like(model) if tensor is None else _dense(tensor)).reshape(-1).to(dtype)
            for tensor, model in zip(tensors, like, strict=True)
        ]
    )


def join_rows(stacked: Sequence[Tensor | None], like: Tensors, count: int) -> Tensor:
    """``(count, P)``: row i is :func:`join` of the i-th entries along the first axes."""
    dtype = vector_dtype(like)
    return torch.cat(
        [
            model.new_zeros(count, model.numel(), dtype=dtype)
            if tensor is None
            else tensor.reshape(count, model.numel()).to(dtype)
            for tensor, model in zip(stacked, like, strict=True)
        ],
        dim=1,
    )


def split(vector: Tensor, like: Tensors) -> list[Tensor]:
    """The inverse of :func:`join`, also for rows ``(k, P)``: views where memory and dtypes allow."""
    sizes = [tensor.numel() for tensor in like]
    try:
        pieces = vector.contiguous().split_with_sizes(sizes, dim=-1)
    except RuntimeError as error:
        raise ParameterError(
            f"The parameters are {sum(sizes):,} numbers now; expected the {vector.shape[-1]:,} that they "
            "were before. Were some of them frozen or changed since? Make a new objective of the model."
        ) from error
    rows = vector.shape[:-1]
    parts = [piece.view([*rows, *tensor.shape]) for piece, tensor in zip(pieces, like, strict=True)]
    return [
        part if part.dtype == tensor.dtype else part.to(tensor.dtype)
        for part, tensor in zip(parts, like, strict=True)
    ]


def multiply(product: Callable[[Tensor, bool], Tensor], v: Tensor, last: bool = True) -> Tensor:
    """``product`` of a vector ``(P,)``, or of the columns of a block ``(P, k)``.

    The columns of a block result are contiguous, so that a block which comes back as the next ``v`` is
    not copied.
    """
    return product(v, last) if v.ndim == 1 else product(v.T.contiguous(), last).T


def row_by_row(product: Callable[[Tensor, bool], Tensor]) -> Callable[[Tensor, bool], Tensor]:
    """A product of vectors, made one of rows ``(k, P)`` too."""

    def of_each(v: Tensor, last: bool) -> Tensor:
        if v.ndim == 1:
            return product(v, last)
        result = torch.empty_like(v)
        for i, row in enumerate(v):
            part = product(row, last and i == len(v) - 1)
            if i == 0:
                result = part.new_empty(v.shape)
            result[i] = part
        return result

    return of_each


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.layout is torch.strided else tensor.to_dense()

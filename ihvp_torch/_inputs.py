"""A loss as a function of its parameters and of its data together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ihvp_torch._derivatives import Function, scalar
from ihvp_torch._parameters import Call, Parameters
from ihvp_torch._tree import fill, leaves_of
from ihvp_torch._vector import split


class Inputs:
    """The tensors of a batch that a loss can be differentiated by: real floating numbers, with axes."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch
        self._leaves = leaves_of(batch)
        self._places = [i for i, leaf in enumerate(self._leaves) if _is_input(leaf)]
        self.tensors: list[Tensor] = [self._leaves[i] for i in self._places]
        self.size: int = sum(tensor.numel() for tensor in self.tensors)

    def jointly(self, loss: Callable[[Any, Any], Any], parameters: Parameters) -> Function:
        """The loss as a function of the parameters and, after them, of these tensors."""
        count = len(parameters.tensors)

        def bind(leaves: Sequence[Tensor]) -> Call:
            call, batch = parameters.bind(leaves[:count]), self._filled(self._leaves, leaves[count:])
            return lambda function: call(lambda structure: function((structure, batch)))

        return Function([*parameters.tensors, *self.tensors], bind, lambda pair: scalar(loss(*pair)))

    def assemble(self, vectors: Tensor) -> Any:
        """The batch with the parts of a vector ``(n,)``, or of rows ``(k, n)``, in the place of its inputs.

        Everything else is None.
        """
        return self._filled([None] * len(self._leaves), split(vectors, self.tensors))

    def _filled(self, leaves: Sequence[Any], tensors: Sequence[Tensor]) -> Any:
        filled = list(leaves)
        for place, tensor in zip(self._places, tensors, strict=True):
            filled[place] = tensor
        return fill(self._batch, filled)


def _is_input(leaf: Any) -> bool:
    if not isinstance(leaf, Tensor) or leaf.layout is not torch.strided:
        return False
    return leaf.ndim > 0 and bool(leaf.is_floating_point())

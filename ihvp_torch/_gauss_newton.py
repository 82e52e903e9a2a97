"""Products with the generalised Gauss–Newton matrix ``Jᵀ (∇²_outputs loss) J`` (Schraudolph 2002)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ihvp.errors import LossIndependentOfParameters
from ihvp_torch._curvature import unfused
from ihvp_torch._derivatives import Function, duals, forward_mode
from ihvp_torch._fallback import FirstThatWorks, Memory
from ihvp_torch._opaque import refuse_constants, refuse_once_differentiable
from ihvp_torch._parameters import Call
from ihvp_torch._tree import fill, named_leaves
from ihvp_torch._vector import Product, join, row_by_row, split

OutputCurvature: TypeAlias = Callable[["Outputs"], Callable[[Tensor, bool], Tensor]]
"""``∇²_outputs loss`` at these outputs, as a product with flat vectors."""


class Outputs:
    """What a prediction returned: the tensors in it that depend on the parameters, and all the rest."""

    def __init__(self, tree: Any) -> None:
        self._tree = tree
        self._leaves = [leaf for _, leaf in named_leaves(tree)]
        self.varying = [i for i, x in enumerate(self._leaves) if isinstance(x, Tensor) and x.requires_grad]
        self.tensors: list[Tensor] = [self._leaves[i] for i in self.varying]
        if not self.tensors:
            raise LossIndependentOfParameters("the prediction carries no gradient")

    def bind(self, tensors: Sequence[Tensor]) -> Call:
        """Calls functions of the outputs with ``tensors`` in the place of those that vary."""
        leaves = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        for i, tensor in zip(self.varying, tensors, strict=True):
            leaves[i] = tensor
        tree = fill(self._tree, leaves)
        return lambda function: function(tree)


def gauss_newton(
    predict: Function, output_curvature: OutputCurvature, key: Any, memory: Memory
) -> FirstThatWorks:
    """``Jᵀ (∇²_outputs loss) J`` as a product.

    The value of ``predict`` is a tensor, or a tree of tensors; ``output_curvature(outputs)`` is the product
    with ``∇²_outputs loss``; ``key`` is the user's function under which ``memory`` keeps the way.
    """
    ways = {name: partial(way(output_curvature), predict) for name, way in WAYS.items()}
    return FirstThatWorks(ways, key, memory)


def double_backward(output_curvature: OutputCurvature) -> Callable[[Function], Product]:
    """``J v`` as the derivative by ``u`` of ``⟨Jᵀ u, v⟩``: backward passes only, on one kept graph."""

    def prepare(predict: Function) -> Product:
        leaves = predict.leaves()
        call = predict.bind(leaves)

        def differentiate(structure: Any) -> tuple[Outputs, list[Tensor], Sequence[Tensor | None]]:
            outputs = Outputs(predict.evaluate(structure))
            refuse_once_differentiable(outputs.tensors)
            cotangents = [torch.ones_like(output, requires_grad=True) for output in outputs.tensors]
            pulled = torch.autograd.grad(
                outputs.tensors, leaves, cotangents, create_graph=True, allow_unused=True
            )
            if all(part is None for part in pulled):
                raise LossIndependentOfParameters("the prediction's gradient reaches none of them")
            refuse_constants(pulled, outputs.tensors)
            return outputs, cotangents, pulled

        outputs, cotangents, pulled = call(differentiate)
        reached = [i for i, part in enumerate(pulled) if part is not None and part.requires_grad]
        curve = output_curvature(outputs)

        def product(v: Tensor, last: bool) -> Tensor:
            pieces = split(v, leaves)
            pushed = call(
                lambda _: torch.autograd.grad(
                    [pulled[i] for i in reached],
                    cotangents,
                    [pieces[i] for i in reached],
                    retain_graph=True,
                    allow_unused=True,
                )
            )
            return _pull(call, outputs, leaves, curve(join(pushed, cotangents), False), last)

        return Product(row_by_row(product))

    return prepare


def dual_numbers(output_curvature: OutputCurvature) -> Callable[[Function], Product]:
    """``J v`` by one forward pass on dual numbers."""

    def prepare(predict: Function) -> Product:
        leaves = predict.leaves()
        call = predict.bind(leaves)
        outputs = call(lambda structure: Outputs(predict.evaluate(structure)))
        curve = output_curvature(outputs)

        def push(v: Tensor) -> Tensor:
            with forward_mode(), forward_ad.dual_level():
                tree = predict.bind(duals(predict.point(), split(v, leaves)))(predict.evaluate)
                values = [leaf for _, leaf in named_leaves(tree)]
                tangents = [forward_ad.unpack_dual(values[i]).tangent for i in outputs.varying]
                return join(tangents, outputs.tensors)

        def product(v: Tensor, last: bool) -> Tensor:
            return _pull(call, outputs, leaves, curve(push(v), False), last)

        return Product(row_by_row(product))

    return prepare


def _pull(call: Call, outputs: Outputs, leaves: Sequence[Tensor], u: Tensor, last: bool) -> Tensor:
    cotangents = split(u, outputs.tensors)
    return join(
        call(
            lambda _: torch.autograd.grad(
                outputs.tensors, leaves, cotangents, retain_graph=not last, allow_unused=True
            )
        ),
        leaves,
    )


WAYS: dict[str, Callable[[OutputCurvature], Callable[[Function], Product]]] = {
    "double backward": double_backward,
    "forward mode": dual_numbers,
    "double backward without fused kernels": lambda curve: unfused(double_backward(curve)),
    "forward mode without fused kernels": lambda curve: unfused(dual_numbers(curve)),
}

"""Products with a model's Jacobian J, and with ``Jᵀ (∇²_outputs loss) J`` (Schraudolph 2002)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ihvp.errors import LossIndependentOfParameters
from ihvp_torch._curvature import unfused
from ihvp_torch._derivatives import Function, duals, forward_mode
from ihvp_torch._fallback import FirstThatWorks, Memory
from ihvp_torch._graph import saved_tensors
from ihvp_torch._opaque import refuse_constants, refuse_once_differentiable
from ihvp_torch._parameters import Call
from ihvp_torch._rows import rows_at_once, together, widest
from ihvp_torch._tape import Recorded
from ihvp_torch._tree import fill, leaves_of
from ihvp_torch._vector import Product, join, split, vector_dtype

OutputCurvature: TypeAlias = Callable[["Outputs"], FirstThatWorks]
"""``∇²_outputs loss`` at these outputs, as a product with flat vectors."""


class Outputs:
    """What a prediction returned: the tensors in it that depend on the parameters, and all the rest."""

    def __init__(self, tree: Any) -> None:
        self._tree = tree
        self._leaves = leaves_of(tree)
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

    def derivatives(self, pushed: Tensor) -> list[Tensor]:
        """A vector of derivatives of those that vary as arrays, with zeros for other floating tensors."""
        varying = dict(zip(self.varying, split(pushed, self.tensors), strict=True))
        return [
            varying.get(i, torch.zeros_like(leaf))
            for i, leaf in enumerate(self._leaves)
            if isinstance(leaf, Tensor) and leaf.is_floating_point()
        ]


@dataclass(frozen=True)
class Jacobian:
    """The derivative J of those outputs that vary by the parameters."""

    outputs: Outputs
    push: Callable[[Tensor], Tensor]  # J v
    pull: Callable[[Tensor, bool], Tensor]  # pull(u, last): Jᵀ u
    kept: Callable[[], Iterable[Tensor]]  # the tensors that its graphs keep


def gauss_newton(
    predict: Function, output_curvature: OutputCurvature, key: Any, memory: Memory
) -> FirstThatWorks:
    """``Jᵀ (∇²_outputs loss) J`` as a product.

    The value of ``predict`` is a tensor, or a tree of tensors; ``output_curvature(outputs)`` is the product
    with ``∇²_outputs loss``; ``key`` is the user's function under which ``memory`` keeps the way.
    """

    def of(jacobian: Jacobian) -> Product:
        curve = output_curvature(jacobian.outputs)

        def single(v: Tensor, last: bool) -> Tensor:
            return jacobian.pull(curve(jacobian.push(v), False), last)

        size = sum(tensor.numel() for tensor in predict.tensors)
        like = torch.empty(size, dtype=vector_dtype(predict.tensors), device="meta")
        recorded = Recorded(lambda parts: [single(parts[0], False)], lambda v: [v], [like])

        @functools.cache
        def at_once() -> int:
            tensors = predict.tensors
            return rows_at_once(widest(tensors, jacobian.kept(), predict.batch), tensors[0].device)

        def held() -> Iterable[Tensor]:
            return itertools.chain(jacobian.kept(), curve.held(), recorded.held())

        return Product(together(single, recorded, at_once), held)

    return _first_that_works(of, predict, key, memory)


def push_forward(predict: Function, v: Tensor, key: Any, memory: Memory) -> list[Tensor]:
    """``J v`` for ``v`` of shape ``(P,)`` or ``(P, k)``: an array for each floating tensor of the outputs."""

    def of(jacobian: Jacobian) -> Product:
        def product(rows: Tensor, last: bool) -> Any:
            each = [jacobian.outputs.derivatives(jacobian.push(row)) for row in rows]
            return [torch.stack(parts, dim=-1).to(v.dtype) for parts in zip(*each, strict=True)]

        return Product(product)

    parts = _first_that_works(of, predict, key, memory)(v[None] if v.ndim == 1 else v.T, True)
    return [part[..., 0] if v.ndim == 1 else part for part in parts]


def double_backward(predict: Function) -> Jacobian:
    """``J v`` as the derivative by ``u`` of ``⟨Jᵀ u, v⟩``: backward passes only, on one kept graph."""
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

    def push(v: Tensor) -> Tensor:
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
        return join(pushed, cotangents)

    roots = [pulled[i].grad_fn for i in reached]
    return Jacobian(outputs, push, partial(_pull, call, outputs, leaves), lambda: saved_tensors(roots))


def dual_numbers(predict: Function) -> Jacobian:
    """``J v`` by one forward pass on dual numbers."""
    leaves = predict.leaves()
    call = predict.bind(leaves)
    outputs = call(lambda structure: Outputs(predict.evaluate(structure)))

    def push(v: Tensor) -> Tensor:
        with forward_mode(), forward_ad.dual_level():
            tree = predict.bind(duals(predict.point(), split(v, leaves)))(predict.evaluate)
            values = leaves_of(tree)
            tangents = [forward_ad.unpack_dual(values[i]).tangent for i in outputs.varying]
            return join(tangents, outputs.tensors)

    roots = [output.grad_fn for output in outputs.tensors]
    return Jacobian(outputs, push, partial(_pull, call, outputs, leaves), lambda: saved_tensors(roots))


def _first_that_works(
    of: Callable[[Jacobian], Product], predict: Function, key: Any, memory: Memory
) -> FirstThatWorks:
    """What ``of`` makes of the Jacobian, in the first way to it that the operations support."""
    plain: dict[str, Callable[[Function], Product]] = {
        "double backward": lambda function: of(double_backward(function)),
        "forward mode": lambda function: of(dual_numbers(function)),
    }
    ways = plain | {f"{name} without fused kernels": unfused(way) for name, way in plain.items()}
    return FirstThatWorks({name: partial(way, predict) for name, way in ways.items()}, key, memory)


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

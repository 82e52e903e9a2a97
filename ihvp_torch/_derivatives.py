"""First derivatives of a scalar function of tensors, with the checks that every use of a loss needs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

from ihvp.errors import ChangedInPlace, LossIndependentOfParameters, LossNotScalar, TracedValue, describe
from ihvp_torch._checkpoint import recorded_checkpoints
from ihvp_torch._parameters import Call
from ihvp_torch._reach import in_place_where_missed
from ihvp_torch._turns import silently, turns
from ihvp_torch._vector import join

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Function:
    """A function of tensors that stand in a user's structure."""

    tensors: Sequence[Tensor]  # the point
    bind: Callable[[Sequence[Tensor]], Call]  # bind(leaves): a Call with leaves in the structure
    evaluate: Callable[[Any], Any]  # evaluate(structure): the value
    batch: Any = None  # the data that evaluate reads

    def point(self) -> list[Tensor]:
        """Aliases of the tensors, constant: no data is copied."""
        # Tensors made in inference mode can never require a gradient; a clone of one can.
        return [(t.clone() if t.is_inference() else t).detach() for t in self.tensors]

    def leaves(self) -> list[Tensor]:
        """Aliases of the tensors to differentiate by, so that no ``.grad`` of the user's is touched."""
        return [t.requires_grad_() for t in self.point()]


def recording(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, recording gradients also in ``no_grad``, ``inference_mode``, re-entrant checkpoints."""

    @functools.wraps(function)
    def recorded(*args: P.args, **kwargs: P.kwargs) -> R:
        if peek_interpreter_stack() is not None:
            raise TracedValue("What a call needs")
        with recorded_checkpoints():
            try:
                if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
                    return in_place_where_missed(function, *args, **kwargs)
                with torch.inference_mode(False), torch.enable_grad():
                    return in_place_where_missed(function, *args, **kwargs)
            except RuntimeError as error:
                if "modified by an inplace operation" in str(error):
                    raise ChangedInPlace from error
                raise

    return recorded


def scalar(value: Any) -> Tensor:
    """``value``, if it is one real scalar tensor.

    LossNotScalar if it has axes, is complex or integer, or no tensor; LossIndependentOfParameters for a
    Python number, which has lost its derivative.
    """
    if isinstance(value, float | np.floating):
        raise LossIndependentOfParameters(f"it returned the number {float(value)!r}, which is not a tensor")
    if not isinstance(value, Tensor):
        raise LossNotScalar(describe(value))
    if value.ndim or not value.is_floating_point():
        raise LossNotScalar(f"{describe(value)} and dtype {value.dtype}")
    return value


def gradient(
    value: Tensor, leaves: Sequence[Tensor], factor: Tensor | None = None
) -> Sequence[Tensor | None]:
    """The derivatives of a scalar by each of the leaves; None where it does not depend on one.

    With a ``factor`` it is the gradient times that scalar, and its own graph is recorded.
    """
    if not value.requires_grad:
        raise LossIndependentOfParameters("its value carries no gradient")
    gradients: Sequence[Tensor | None] = torch.autograd.grad(
        value, leaves, factor, create_graph=factor is not None, allow_unused=True
    )
    if all(part is None for part in gradients):
        raise LossIndependentOfParameters("its gradient reaches none of them")
    return gradients


def duals(point: Sequence[Tensor], tangents: Sequence[Tensor]) -> list[Tensor]:
    """The point with its tangents attached; call it inside :func:`forward_mode` and a ``dual_level``."""
    return [forward_ad.make_dual(x, t) for x, t in zip(point, tangents, strict=True)]


@contextmanager
def forward_mode() -> Iterator[None]:
    """In the block, forward mode may be used: by one thread, for torch counts its levels for all together."""
    _load_forward_mode()
    with turns:
        yield


@functools.cache
def _load_forward_mode() -> None:
    # Torch compiles its formulas with a function that it has deprecated.
    with silently():
        from torch._decomp import decompositions_for_jvp  # noqa: F401


def flat_gradient(function: Function) -> Tensor:
    """The gradient of a scalar function as one vector, ``(P,)``."""
    leaves = function.leaves()
    # Inside the call, because a checkpointed forward pass is repeated during the backward pass.
    gradients = function.bind(leaves)(lambda structure: gradient(function.evaluate(structure), leaves))
    return join(gradients, leaves)

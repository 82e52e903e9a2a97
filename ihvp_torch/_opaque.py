"""Operations that torch cannot differentiate twice: what its messages call them, and those it passes over."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction, once_differentiable

from ihvp_torch._graph import nodes

UNNAMED = "an operation that it does not name"
_MESSAGES = tuple(
    re.compile(pattern)
    for pattern in (
        r"derivative for '?(?P<name>[\w.:, ]+?)'? is not implemented",
        r"Trying to use forward AD with (?P<name>\S+) that does not support it",
        r"double backwards? is not supported for (?P<name>[\w ]+?) due to",
        r"double backwards? on (?P<name>\w+) not supported",
        r"(?P<name>torch\.compile) with aot_autograd does not currently support double backward",
        r"(?i:double[- ]?backward)",
        r"marked with @once_differentiable",
        r"must implement the jvp function",
    )
)
# Nodes of autograd whose own second derivative is wrong, and the functions that make them.
_WRONG = {"WeightNormInterfaceBackward0": "torch._weight_norm"}
_ONCE = once_differentiable(lambda ctx: None).__code__


def unsupported_operation(error: BaseException) -> str | None:
    """The operation that torch says it cannot differentiate; None if the error is about something else."""
    for pattern in _MESSAGES:
        if match := pattern.search(str(error)):
            return match.groupdict().get("name") or UNNAMED
    return None


def refuse_once_differentiable(values: Iterable[Tensor]) -> None:
    """Raise if ``values`` were computed by functions that have one derivative only and do not say so.

    The backward pass of those that are declared as such returns constants, and torch would take the second
    derivative for zero. That of a fused kernel is wrong.
    """
    for node in nodes(value.grad_fn for value in values):
        if isinstance(node, BackwardCFunction):
            function = node._forward_cls.__name__ if _is_once_differentiable(node._forward_cls) else None
        else:
            function = _WRONG.get(type(node).__name__)
        if function:
            raise NotImplementedError(f"The second derivative for {function} is not implemented")


def refuse_constants(gradients: Iterable[Tensor | None], values: Sequence[Tensor]) -> None:
    """Raise if a part of the gradient has no graph, though it was multiplied by a factor that has one.

    Some backward pass has then left torch. Zeros, as the gradient of a step function, are constant rightly.
    """
    if any(part is not None and not part.requires_grad and bool(part.any()) for part in gradients):
        custom = (node for node in nodes(v.grad_fn for v in values) if isinstance(node, BackwardCFunction))
        names = ", ".join(sorted({node._forward_cls.__name__ for node in custom}))
        raise NotImplementedError(f"The second derivative for {names or UNNAMED} is not implemented")


def _is_once_differentiable(function: Any) -> bool:
    if function.__module__.startswith("torch._functorch._aot_autograd"):
        return True
    backward = getattr(function, "backward", None)
    while backward is not None:
        if getattr(backward, "__code__", None) is _ONCE:
            return True
        backward = getattr(backward, "__wrapped__", None)
    return False

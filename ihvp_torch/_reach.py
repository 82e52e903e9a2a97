"""Losses that reach a module by another way than their argument, as closures may, or that miss it there.

They would see the module itself beside its replica, and terms of the derivative would be lost without a word.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch.autograd.graph import get_gradient_edge

from ihvp.errors import IhvpError
from ihvp_torch._graph import nodes
from ihvp_torch._parameters import ModuleParameters, Parameters
from ihvp_torch._replica import bind_in_place
from ihvp_torch._tree import leaves_of

P = ParamSpec("P")
R = TypeVar("R")

# By module, and by the function or the object whose method it is, what was seen to do with a replica.
_content: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()


class ReplicaMissed(Exception):
    """A function does something else with a replica than with the module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        super().__init__(module)


def content_with_replica(
    function: Callable[[Any, Any], Any], parameters: Parameters
) -> Callable[[Any, Any], Any]:
    """``function(structure, batch)``, which raises :class:`ReplicaMissed` where a replica will not do.

    What was seen to be content is not looked at again.
    """
    if not isinstance(parameters, ModuleParameters) or parameters.slots.in_place:
        return function
    module = parameters.module
    # A method is a new object at each access; what it belongs to stays.
    holder, code = getattr(function, "__self__", function), getattr(function, "__func__", None)
    try:
        known = _content.setdefault(module, weakref.WeakKeyDictionary()).setdefault(holder, set())
    except TypeError:  # not hashable, or no weak references
        known = set()
    if code in known:
        return function
    originals = {id(slot.tensor) for slot in parameters.slots.parameters if slot.tensor.requires_grad}
    buffers = [slot.tensor for slot in parameters.slots.buffers if not slot.tensor.is_inference()]

    def watched(structure: Any, batch: Any) -> Any:
        if code in known:
            return function(structure, batch)
        before = [(buffer, buffer._version, buffer.clone()) for buffer in buffers]
        try:
            value = function(structure, batch)
            missed = any(id(variable) in originals for variable in _variables(value))
        except (IhvpError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise ReplicaMissed(module) from error
        finally:
            written = [(buffer, old) for buffer, version, old in before if buffer._version != version]
            with torch.no_grad():
                for buffer, old in written:
                    buffer.copy_(old)
        if missed or written:
            raise ReplicaMissed(module)
        known.add(code)
        return value

    return watched


def in_place_where_missed(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """``function(…)``; with the module itself in the place of a replica that will not do."""
    try:
        return function(*args, **kwargs)
    except ReplicaMissed as missed:
        module = missed.module
    bind_in_place(module)
    try:
        return function(*args, **kwargs)
    except BaseException:
        bind_in_place(module, always=False)
        raise


def _variables(value: Any) -> Iterator[Any]:
    """The tensors that a value, or a tree of them, was computed from and that require a gradient."""
    for leaf in leaves_of(value):
        while isinstance(leaf, Tensor) and is_functorch_wrapped_tensor(leaf):
            leaf = get_unwrapped(leaf)
        if isinstance(leaf, Tensor) and leaf.requires_grad:
            for node in nodes([get_gradient_edge(leaf).node]):
                yield getattr(node, "variable", None)

"""A module's replica: the same code and attributes over other tensors, so that the module stays untouched."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

_in_place: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def replicate(module: nn.Module, tensors: Mapping[int, Tensor]) -> nn.Module:
    """A module with ``tensors[id(t)]`` in the place of a parameter or buffer t, where there is such an entry.

    Its parts are replicas, too, shared ones once. What they write to themselves stays with the replica.
    """
    replicas: dict[int, nn.Module] = {}

    def replica_of(part: nn.Module) -> nn.Module:
        if id(part) in replicas:
            return replicas[id(part)]
        replica: nn.Module = object.__new__(type(part))
        replicas[id(part)] = replica
        state = vars(replica)
        state.update(vars(part))
        for kind in ("_parameters", "_buffers"):
            state[kind] = {key: tensors.get(id(t), t) for key, t in state[kind].items()}
        state["_modules"] = {
            key: None if child is None else replica_of(child) for key, child in state["_modules"].items()
        }
        return replica

    return replica_of(module)


def is_bound_in_place(module: nn.Module, parts: Iterable[nn.Module]) -> bool:
    """Whether a replica of the module, whose ``parts`` these are, might do something else than itself."""
    return module in _in_place or not all(map(_can_be_replicated, parts))


def bind_in_place(module: nn.Module, always: bool = True) -> None:
    """From now on, the module is bound in place; or no longer."""
    (_in_place.add if always else _in_place.discard)(module)


def _can_be_replicated(part: nn.Module) -> bool:
    if not _is_plain(type(part)):  # type: ignore[arg-type]  # classes are hashable
        return False
    # Such a hook may know the module that it was made for, and nothing tells whether it asks for it.
    hooks = (part._forward_pre_hooks, part._forward_hooks, part._backward_pre_hooks, part._backward_hooks)
    return all(type(hook).__module__.startswith("torch.nn.") for kind in hooks for hook in kind.values())


@functools.lru_cache(maxsize=1024)
def _is_plain(kind: type) -> bool:
    """Whether an object of this class is what its dictionary says, and may be dropped like any other."""
    special = issubclass(kind, torch.jit.ScriptModule) or hasattr(kind, "__del__")
    return not special and not any(vars(base).get("__slots__") for base in kind.__mro__)

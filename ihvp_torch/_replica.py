"""A module's replica: the same code and attributes over other tensors, so that the module stays untouched."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

_in_place: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def replicate(parts: Sequence[nn.Module], tensors: Mapping[int, Tensor]) -> nn.Module:
    """A module with ``tensors[id(t)]`` in the place of a parameter or buffer t, where there is such an entry.

    What it and its parts write to themselves stays with the replica.

    ``parts`` are the module and all that it is made of, each once.
    """
    replicas: dict[int, nn.Module] = {id(part): object.__new__(type(part)) for part in parts}
    # For a small network a product takes no longer than some ten lines of Python for each part.
    for part in parts:
        state = part.__dict__.copy()
        for kind in ("_parameters", "_buffers"):
            held = state[kind]
            state[kind] = {key: tensors.get(id(t), t) for key, t in held.items()} if held else {}
        children = state["_modules"]
        state["_modules"] = (
            {key: replicas[id(child)] if child is not None else None for key, child in children.items()}
            if children
            else {}
        )
        object.__setattr__(replicas[id(part)], "__dict__", state)
    return replicas[id(parts[0])]


def is_bound_in_place(parts: Sequence[nn.Module]) -> bool:
    """Whether a replica of a module, whose ``parts`` these are, might do something else than itself."""
    return parts[0] in _in_place or not all(map(_can_be_replicated, parts))


def bind_in_place(module: nn.Module, always: bool = True) -> None:
    """From now on, the module is bound in place; or no longer."""
    (_in_place.add if always else _in_place.discard)(module)


def _can_be_replicated(part: nn.Module) -> bool:
    plain = _plain_classes.get(type(part))
    if plain is None:
        plain = _plain_classes[type(part)] = _is_plain(type(part))
    if not plain:
        return False
    hooks = (part._forward_pre_hooks, part._forward_hooks, part._backward_pre_hooks, part._backward_hooks)
    # Such a hook may know the module that it was made for, and nothing tells whether it asks for it.
    return not any(hooks) or all(
        type(hook).__module__.startswith("torch.nn.") for kind in hooks for hook in kind.values()
    )


_plain_classes: weakref.WeakKeyDictionary[type, bool] = weakref.WeakKeyDictionary()


def _is_plain(kind: type) -> bool:
    """Whether an object of this class is what its dictionary says, and may be dropped like any other."""
    special = issubclass(kind, torch.jit.ScriptModule) or hasattr(kind, "__del__")
    return not special and not any(vars(base).get("__slots__") for base in kind.__mro__)

"""The parameters as a user holds them, and how a loss sees other tensors in their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ihvp.errors import ParameterError, describe
from ihvp_torch._tree import fill, named_leaves

Call: TypeAlias = Callable[[Callable[[Any], Any]], Any]
"""``call(function)``: the value of ``function(params)``, with ``params`` in the user's structure."""

ACCEPTED = "an nn.Module, or a dict, list or tuple of floating-point tensors"


class ModuleState(dict[str, Tensor]):
    """Other values for the trainable parameters of a module, by name; a loss is given the module itself."""

    def __init__(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(tensors)
        self.module = module


@dataclass(frozen=True)
class TreeParameters:
    """Tensors in nested dicts, lists and tuples."""

    tree: Any
    tensors: list[Tensor]

    def assemble(self, tensors: Sequence[Tensor]) -> Any:
        """The user's structure with ``tensors`` as its leaves."""
        return fill(self.tree, tensors)

    def bind(self, tensors: Sequence[Tensor]) -> Call:
        """Calls functions of the parameters with ``tensors`` in their place."""
        tree = self.assemble(tensors)
        return lambda function: function(tree)


@dataclass(frozen=True)
class ModuleParameters:
    """The trainable parameters of a module, tied ones once."""

    module: nn.Module
    names: list[str]
    tensors: list[Tensor]

    def assemble(self, tensors: Sequence[Tensor]) -> ModuleState:
        """The module's state with ``tensors`` as its values."""
        return ModuleState(self.module, dict(zip(self.names, tensors, strict=True)))

    def bind(self, tensors: Sequence[Tensor]) -> Call:
        """Calls functions of the module with ``tensors`` in the place of its parameters.

        Buffers are replaced by clones, because batch norm in training mode writes to them.
        """
        own = dict(self.module.named_parameters())
        substitutes = {id(own[name]): tensor for name, tensor in zip(self.names, tensors, strict=True)}
        for buffer in self.module.buffers():
            substitutes[id(buffer)] = buffer.clone()
        # Every name of a tied tensor is given, so torch need not search for ties at each call.
        everything = (
            *self.module.named_parameters(remove_duplicate=False),
            *self.module.named_buffers(remove_duplicate=False),
        )
        return partial(
            torch.func.functional_call,
            _Caller(self.module),
            {f"module.{name}": substitutes[id(t)] for name, t in everything if id(t) in substitutes},
            tie_weights=False,
        )


Parameters: TypeAlias = TreeParameters | ModuleParameters


class _Caller(nn.Module):  # type: ignore[misc]
    """Turns a function of the module into the ``forward`` that ``functional_call`` calls."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, function: Callable[[nn.Module], Any]) -> Any:
        return function(self.module)


def parameters_of(params: Any) -> Parameters:
    """The parameters that are differentiated.

    Raises
    ------
    ihvp.errors.ParameterError
        Unknown container, no parameters, a parameter that is not real floating point, several devices.
    """
    if isinstance(params, nn.Module):
        named: dict[str, Tensor] = {name: p for name, p in params.named_parameters() if p.requires_grad}
        if not named and any(True for _ in params.parameters()):
            raise ParameterError(
                "No parameter of the module has requires_grad; expected at least one. Call "
                "module.requires_grad_(True), or on the layers to differentiate."
            )
    elif isinstance(params, ModuleState):
        named = dict(params)
    else:
        leaves = list(named_leaves(params))
        _check(leaves, params)
        return TreeParameters(params, [tensor for _, tensor in leaves])
    _check(list(named.items()), params)
    module = params.module if isinstance(params, ModuleState) else params
    return ModuleParameters(module, list(named), list(named.values()))


def live_tensors(params: Any) -> list[Tensor]:
    """Every tensor that a loss can read through ``params`` at this moment."""
    if isinstance(params, nn.Module):
        return [*params.parameters(), *params.buffers()]
    if isinstance(params, ModuleState):
        return [*params.values(), *live_tensors(params.module)]
    return [tensor for _, tensor in named_leaves(params)]


def _check(named: list[tuple[str, Any]], params: Any) -> None:
    if not named:
        raise ParameterError(f"{describe(params)} holds no parameters; expected {ACCEPTED}.")
    wrong = [
        f"{name or 'params'} ({leaf.dtype if isinstance(leaf, Tensor) else describe(leaf)})"
        for name, leaf in named
        if not (isinstance(leaf, Tensor) and leaf.is_floating_point())
    ]
    if wrong:
        raise ParameterError(
            f"Cannot differentiate by {_listed(wrong)}; expected {ACCEPTED}. Convert numpy arrays with "
            "torch.as_tensor, give an iterator as a list, and keep integer and complex entries out."
        )
    devices = {str(leaf.device) for _, leaf in named}
    if len(devices) > 1:
        where = _listed([f"{name} ({leaf.device})" for name, leaf in named])
        raise ParameterError(
            f"The parameters are on {len(devices)} devices: {where}; expected one. Move them to one device."
        )


def _listed(entries: list[str], most: int = 5) -> str:
    more = f" and {len(entries) - most} more" if len(entries) > most else ""
    return ", ".join(entries[:most]) + more

"""The parameters as a user holds them, and how a loss sees other tensors in their place."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn

from ihvp.errors import ParameterError, describe
from ihvp_torch._replica import is_bound_in_place, replicate
from ihvp_torch._tree import fill, leaves_of, named_leaves
from ihvp_torch._turns import turns

Call: TypeAlias = Callable[[Callable[[Any], Any]], Any]
"""``call(function)``: the value of ``function(params)``, with ``params`` in the user's structure."""

ACCEPTED = "an nn.Module, or a dict, list or tuple of floating-point tensors"


class ModuleState(dict[str, Tensor]):
    """Other values for the trainable parameters of a module, by name; a loss is given the module itself."""

    def __init__(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(tensors)
        self.module = module


class Slot(NamedTuple):
    """Where a module, or a part of it, keeps a tensor: ``holder[key]``."""

    name: str
    holder: MutableMapping[str, Tensor | None]
    key: str
    tensor: Tensor


@dataclass
class Slots:
    """A module's parts, and the places of its parameters and of its buffers.

    Where it is bound in place, also those of the tensors that hooks compute from the parameters.
    """

    parts: list[nn.Module]
    parameters: list[Slot] = field(default_factory=list)
    buffers: list[Slot] = field(default_factory=list)
    computed: list[Slot] = field(default_factory=list)
    in_place: bool = False

    @property
    def tensors(self) -> Iterator[Slot]:
        """Parameters and buffers."""
        return itertools.chain(self.parameters, self.buffers)


@dataclass(frozen=True)
class TreeParameters:
    """Tensors in nested dicts, lists and tuples."""

    tree: Any
    names: list[str]
    tensors: list[Tensor]

    @property
    def rest(self) -> list[Tensor]:
        """What a loss can read through the parameters beside them: nothing."""
        return []

    def assemble(self, tensors: Sequence[Tensor]) -> Any:
        """The user's structure with ``tensors`` as its leaves."""
        return fill(self.tree, tensors)

    def bind(self, tensors: Sequence[Tensor], rest: Sequence[Tensor] | None = None) -> Call:
        """Calls functions of the parameters with ``tensors`` in their place."""
        tree = self.assemble(tensors)
        return lambda function: function(tree)


@dataclass(frozen=True)
class ModuleParameters:
    """The trainable parameters of a module, tied ones once."""

    module: nn.Module
    names: list[str]
    tensors: list[Tensor]
    slots: Slots

    @property
    def rest(self) -> list[Tensor]:
        """What a loss can read through the module beside them: frozen parameters and buffers, once each."""
        own = {id(slot.tensor) for slot in self.slots.parameters if slot.name in self.names}
        unique = {id(slot.tensor): slot.tensor for slot in self.slots.tensors}
        return [tensor for place, tensor in unique.items() if place not in own]

    def assemble(self, tensors: Sequence[Tensor]) -> ModuleState:
        """The module's state with ``tensors`` as its values."""
        return ModuleState(self.module, dict(zip(self.names, tensors, strict=True)))

    def bind(self, tensors: Sequence[Tensor], rest: Sequence[Tensor] | None = None) -> Call:
        """Calls functions of a replica of the module with ``tensors`` in the place of its parameters.

        Buffers are replaced by clones, because batch norm in training mode writes to them; with ``rest``,
        those that are in the place of :attr:`rest`. A module that cannot be replicated gets the tensors
        itself for the time of a call, one thread at a time.
        """
        own = {slot.name: slot.tensor for slot in self.slots.parameters}
        # By identity, so that every place of a tied tensor gets the same one.
        substitutes = {id(own[name]): tensor for name, tensor in zip(self.names, tensors, strict=True)}
        if rest is not None:
            substitutes |= {id(old): tensor for old, tensor in zip(self.rest, rest, strict=True)}
        for slot in self.slots.buffers:
            substitutes[id(slot.tensor)] = substitutes.get(id(slot.tensor), slot.tensor).clone()
        if self.slots.in_place:
            return self._bind_in_place(substitutes)
        with turns:
            replica = replicate(self.slots.parts, substitutes)
        return lambda function: function(replica)

    def _bind_in_place(self, substitutes: Mapping[int, Tensor]) -> Call:
        """What hooks compute from the parameters is put back, too."""
        places = [
            (slot.holder, slot.key, substitutes[id(slot.tensor)])
            for slot in self.slots.tensors
            if id(slot.tensor) in substitutes
        ]
        places += [(slot.holder, slot.key, slot.tensor) for slot in self.slots.computed]

        # torch.func.functional_call does the same, but for a small network takes as long as a product.
        def call(function: Callable[[nn.Module], Any]) -> Any:
            with turns:
                held = [(holder, key, holder[key]) for holder, key, _ in places]
                try:
                    for holder, key, tensor in places:
                        holder[key] = tensor
                    return function(self.module)
                finally:
                    for holder, key, original in held:
                        holder[key] = original

        return call


Parameters: TypeAlias = TreeParameters | ModuleParameters


def parameters_of(params: Any) -> Parameters:
    """The parameters that are differentiated; of a wrapper that averages gradients, those of its model."""
    if isinstance(params, nn.parallel.DistributedDataParallel):
        params = params.module
    if isinstance(params, nn.Module):
        module = params
        places = slots(module)
        trainable: dict[int, Slot] = {}
        for slot in places.parameters:
            if slot.tensor.requires_grad:
                trainable.setdefault(id(slot.tensor), slot)
        named: dict[str, Tensor] = {slot.name: slot.tensor for slot in trainable.values()}
        if not named and places.parameters:
            raise ParameterError(
                "No parameter of the module has requires_grad; expected at least one. Call "
                "module.requires_grad_(True), or on the layers to differentiate."
            )
    elif isinstance(params, ModuleState):
        module, named = params.module, dict(params)
        places = slots(module)
    else:
        leaves = list(named_leaves(params))
        _check(leaves, params)
        return TreeParameters(params, [name for name, _ in leaves], [tensor for _, tensor in leaves])
    _check(list(named.items()), params)
    return ModuleParameters(module, list(named), list(named.values()), places)


def slots(module: nn.Module) -> Slots:
    """The places of a module's tensors; a tied tensor has several."""
    with turns:
        parts = dict(module.named_modules())
        found = Slots([*parts.values()])
        found.in_place = is_bound_in_place(found.parts)
        for path, part in parts.items():
            prefix = f"{path}." if path else ""
            kind: Any = type(part)
            if _shards(kind):
                raise _sharded(path or "the module")
            if getattr(part, "max_norm", None) is not None:
                raise ParameterError(
                    f"{path or 'The module'} has max_norm={part.max_norm}: every forward pass changes its "
                    "weights; expected parameters that stay. Set max_norm=None on the trained module."
                )
            for kind, holder in ((found.parameters, part._parameters), (found.buffers, part._buffers)):
                # Most parts have none of one kind or of both.
                if holder:
                    kind += [Slot(prefix + key, holder, key, t) for key, t in holder.items() if t is not None]
            if found.in_place and part._forward_pre_hooks:
                # As the old weight norm does, which keeps the weight of the last forward pass.
                own = part.__dict__
                found.computed += [Slot(key, own, key, t) for key, t in own.items() if isinstance(t, Tensor)]
    return found


def live_tensors(params: Any) -> list[Tensor]:
    """Every tensor that a loss can read through ``params`` at this moment."""
    if isinstance(params, nn.Module):
        with turns:
            holders = [holder for part in params.modules() for holder in (part._parameters, part._buffers)]
            return [tensor for holder in holders for tensor in holder.values() if tensor is not None]
    if isinstance(params, ModuleState):
        return [*params.values(), *live_tensors(params.module)]
    return leaves_of(params)


def _check(named: list[tuple[str, Any]], params: Any) -> None:
    if not named:
        raise ParameterError(f"{describe(params)} holds no parameters; expected {ACCEPTED}.")
    sharded = [name or "params" for name, leaf in named if hasattr(type(leaf), "full_tensor")]
    if sharded:
        raise _sharded(_listed(sharded))
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
    devices = {leaf.device for _, leaf in named}
    if len(devices) > 1:
        where = _listed([f"{name} ({leaf.device})" for name, leaf in named])
        raise ParameterError(
            f"The parameters are on {len(devices)} devices: {where}; expected one. Move them to one device."
        )


@functools.cache
def _shards(kind: type[Any]) -> bool:
    """Whether modules of this class gather their parameters in each forward pass, for ``backward()`` only."""
    return any(base.__module__.startswith("torch.distributed.fsdp") for base in kind.__mro__)


def _sharded(what: str) -> ParameterError:
    return ParameterError(
        f"The parameters are sharded over processes: {what}; expected whole ones in each process, as vectors "
        "are. Gather them by get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)) of "
        "torch.distributed.checkpoint.state_dict, and load them into a model that is not sharded. Where that "
        "has no room, give grad=… with ihvp_numdiff.InPlaceWeights: see Sharded parameters in "
        "docs/backends.md."
    )


def _listed(entries: list[str], most: int = 5) -> str:
    more = f" and {len(entries) - most} more" if len(entries) > most else ""
    return ", ".join(entries[:most]) + more

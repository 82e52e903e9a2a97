"""Curvature products by torch's compiler, traced once for a loss and the shapes that it meets."""

from __future__ import annotations

import functools
import itertools
import logging
import weakref
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ihvp.backend import Batch, Loss
from ihvp_torch._derivatives import Function, scalar
from ihvp_torch._fallback import FirstThatWorks
from ihvp_torch._parameters import ModuleParameters, Parameters
from ihvp_torch._program import CannotCompile, Program
from ihvp_torch._reach import content_with_replica
from ihvp_torch._rows import compiled_rows
from ihvp_torch._trace import trace
from ihvp_torch._tree import fill, leaves_of, structure
from ihvp_torch._turns import compiling
from ihvp_torch._vector import row_by_row, vector_dtype

_log = logging.getLogger("ihvp")

# A program takes seconds to compile. A loss that meets ever other shapes is better off without.
_MOST = 16
# What a trace may take from a batch as it is. An object of another class could change, or hold tensors.
_CONSTANTS = (str, bytes, int, float, complex, type(None), torch.dtype, torch.device)

Ordinary: TypeAlias = Callable[[Function], FirstThatWorks]
"""The product with the second derivative of a function, without compilation."""


class Programs(dict[Hashable, Program | None]):
    """By the number of vectors and their dtype; None where compilation failed."""

    def __init__(self) -> None:
        self.seconds: defaultdict[Hashable, float] = defaultdict(float)  # that eager products have taken
        self.right: dict[Hashable, bool] = {}  # whether compiled ones were the same, and faster

    @property
    def lowered(self) -> int:
        """How many of them are compiled."""
        return sum(program is not None and program.lowered for program in self.values())


class Compiler:
    """The programs of a backend, which live as long as their losses and modules do."""

    def __init__(self) -> None:
        self._shelves: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        self.expected = 30.0  # seconds that a compilation takes; what the last one took, once there was one

    def __reduce__(self) -> tuple[type[Compiler], tuple[()]]:
        return Compiler, ()

    def curvature(
        self, loss: Loss, parameters: Parameters, batch: Batch, ordinary: Ordinary
    ) -> CompiledCurvature | None:
        """The product ``∇² loss · v``, to be compiled when it is used; None where it cannot be."""
        try:
            programs = self._programs(loss, parameters, batch)
        except TypeError:
            return None
        return CompiledCurvature(programs, loss, parameters, batch, ordinary)

    def _programs(self, loss: Loss, parameters: Parameters, batch: Batch) -> Programs:
        # A method is a new object at each access; what it belongs to stays.
        holder = getattr(loss, "__self__", loss)
        owner = parameters.module if isinstance(parameters, ModuleParameters) else holder
        shelf: dict[Hashable, Programs]
        shelf = self._shelves.setdefault(holder, weakref.WeakKeyDictionary()).setdefault(owner, {})
        code = getattr(loss, "__func__", None)
        leaves = leaves_of(batch)
        key = (code, surroundings(), _parameters_key(parameters), batch_key(batch, leaves))
        if key not in shelf and len(shelf) >= _MOST:
            raise TypeError(f"{loss!r} has met {_MOST} kinds of data.")
        return shelf.setdefault(key, Programs())


class CompiledCurvature:
    """The product ``∇² loss · v`` at some parameters and a batch, by programs where they can be had.

    New ``programs`` are added to those for such parameters and such a batch. The ``ordinary`` product is what
    is traced, and what is used where there is no program.
    """

    without: FirstThatWorks | None = None  # the ordinary product, once it has been prepared
    told_at = logging.WARNING  # the level at which the log says why there is no program

    def __init__(
        self, programs: Programs, loss: Loss, parameters: Parameters, batch: Batch, ordinary: Ordinary
    ) -> None:
        self.programs, self.loss, self._ordinary = programs, loss, ordinary
        self._evaluate = content_with_replica(loss, parameters)
        self._parameters, self._batch, self._rest = parameters, batch, parameters.rest
        self._inputs = [t.detach() for t in (*parameters.tensors, *self._rest, *_tensors(batch))]
        self._shared: dict[Hashable, list[Tensor]] = {}

    def prepare(self) -> None:
        """Trace the product with one vector, so that the loss is known to have one."""
        if self.widest() is None:
            self.eager()

    def held(self) -> Iterable[Tensor]:
        """The tensors that stay in memory for further products."""
        kept = () if self.without is None else self.without.held()
        return itertools.chain(kept, *self._shared.values())

    def widest(self) -> int | None:
        """The entries of the largest value on the way to a product; None where it cannot be traced."""
        tensors = self._parameters.tensors
        size = sum(tensor.numel() for tensor in tensors)
        program = self._program(tensors[0].new_empty(size, dtype=vector_dtype(tensors)))
        return None if program is None else program.widest

    def read(self) -> list[Tensor]:
        """The tensors whose values the products depend on, as far as they are known."""
        constants = (program.trace.constants for program in self.programs.values() if program is not None)
        return [*self._inputs, *itertools.chain.from_iterable(constants)]

    def __call__(self, v: Tensor, last: bool) -> Tensor:
        v = v.detach().contiguous()
        if v.ndim == 1:
            return self._multiply(v) if self._ready(v) else self.eager()(v, last)
        program = self._program(v.new_empty(v.shape[1]))
        if program is None:
            return self.eager()(v, last)
        width = compiled_rows(len(v), program.widest, v.device)
        # torch.vmap, on which programs for several vectors rest, does not know every operation.
        if width > 1 and self._ready(v.new_empty(width, v.shape[1])):
            return self._in_tiles(v, width)
        return row_by_row(self)(v, last)

    def _in_tiles(self, rows: Tensor, width: int) -> Tensor:
        if len(rows) == width:
            return self._multiply(rows)
        filling = rows.new_zeros(-len(rows) % width, rows.shape[1])
        tiles = torch.cat([rows, filling]).split(width)
        return torch.cat([self._multiply(tile) for tile in tiles])[: len(rows)]

    def _multiply(self, v: Tensor) -> Tensor:
        kind = _kind(v)
        program = self.programs[kind]
        assert program is not None
        return program.multiply(self._shared[kind], v)

    def _ready(self, v: Tensor) -> bool:
        """Whether there is a program for vectors like ``v``; then what its products share is computed."""
        kind = _kind(v)
        if kind not in self._shared and (program := self._program(v)) is not None:
            try:
                self._shared[kind] = program.share(self._inputs, v)
            except CannotCompile as error:
                self._give_up(kind, error)
        return kind in self._shared

    def _program(self, v: Tensor) -> Program | None:
        kind = _kind(v)
        with compiling:
            if kind not in self.programs:
                if self.without is None:
                    # Whether a replica of a module will do for the loss, no trace can tell.
                    function = self._function(self._parameters.tensors, self._batch)
                    function.bind(function.leaves())(function.evaluate)
                try:
                    self.programs[kind] = Program(trace(self._product, [*self._inputs, v]))
                except Exception as error:
                    self._give_up(kind, error)
            return self.programs[kind]

    def _give_up(self, kind: Hashable, error: Exception) -> None:
        self.programs[kind] = None
        reason = error.__cause__ or error
        _log.log(self.told_at, "Products of %r are not compiled for %s: %r", self.loss, kind, reason)

    def eager(self) -> FirstThatWorks:
        """The product without compilation, its shared work done."""
        if self.without is None:
            self.without = self._ordinary(self._function(self._parameters.tensors, self._batch))
            self.without.prepare()
        return self.without

    def _product(self, *inputs: Tensor) -> Tensor:
        """What is traced: the ordinary product, with all tensors that it reads as inputs."""
        following = iter(inputs)
        tensors = list(itertools.islice(following, len(self._parameters.tensors)))
        rest = list(itertools.islice(following, len(self._rest)))
        leaves = leaves_of(self._batch)
        batch = fill(self._batch, (next(following) if isinstance(leaf, Tensor) else leaf for leaf in leaves))
        product = self._ordinary(self._function(tensors, batch, rest))
        product.prepare()
        v = next(following)
        if v.ndim == 1:
            return product(v, False)
        rows: Tensor = torch.func.vmap(lambda row: product(row, False))(v)
        return rows

    def _function(self, tensors: list[Tensor], batch: Batch, rest: list[Tensor] | None = None) -> Function:
        bind = functools.partial(self._parameters.bind, rest=rest)
        return Function(tensors, bind, lambda at: scalar(self._evaluate(at, batch)), batch)


def _kind(v: Tensor) -> Hashable:
    return "one vector" if v.ndim == 1 else f"{len(v)} vectors", v.dtype


def surroundings() -> Hashable:
    """What changes the operations of one and the same code."""
    kinds = ("cpu", "cuda")
    casts = tuple((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds)
    return casts, torch.get_default_dtype()


def _parameters_key(parameters: Parameters) -> Hashable:
    layouts = tuple(_layout(tensor) for tensor in (*parameters.tensors, *parameters.rest))
    if not isinstance(parameters, ModuleParameters):
        return structure(parameters.tree), layouts
    places = [(slot.name, id(slot.tensor)) for slot in parameters.slots.tensors]
    order = {place: i for i, place in enumerate(dict.fromkeys(place for _, place in places))}
    tied = tuple((name, order[place]) for name, place in places)
    modes = tuple(part.training for part in parameters.module.modules())
    return tuple(parameters.names), tied, modes, layouts


def batch_key(batch: Batch, leaves: list[Any]) -> Hashable:
    """What a trace takes for granted of a batch. A TypeError says that a trace cannot know it."""
    if wrong := [leaf for leaf in leaves if not isinstance(leaf, (Tensor, *_CONSTANTS))]:
        raise TypeError(f"Unknown to a trace: {type(wrong[0])}.")
    entries = (_layout(leaf) if isinstance(leaf, Tensor) else (type(leaf), leaf) for leaf in leaves)
    return structure(batch), tuple(entries)


def _layout(tensor: Tensor) -> Hashable:
    """What a trace takes for granted of a tensor. A TypeError says that it knows no tensors of its kind."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
    if not plain or tensor.is_inference():
        raise TypeError(f"Unknown to a trace: {type(tensor)}, {tensor.layout}.")
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device


def _tensors(batch: Batch) -> Iterator[Tensor]:
    return (leaf for leaf in leaves_of(batch) if isinstance(leaf, Tensor))

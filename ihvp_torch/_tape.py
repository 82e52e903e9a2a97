"""The operations of a pass through a kept graph, played again for many vectors at once."""

from __future__ import annotations

import functools
import math
import operator
import types
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ihvp_torch._stacked import Place, Stacked, apply, fill
from ihvp_torch._tree import leaves_of, map_leaves
from ihvp_torch._vector import join, join_rows

aten = torch.ops.aten
# Zeros of the shape of a vector's part are the same for all vectors.
_ZEROS = (aten.zeros_like.default, aten.new_zeros.default)
_ALIASES = (aten.detach.default, aten.alias.default)
# By these a function leaves torch, and what it does then is not seen.
_READING = (Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__, Tensor.data_ptr)
# These ask about a tensor, or go through its graph, without reading its values themselves; attributes come by
# the first.
_ABOUT = frozenset(
    [
        *("__get__", "__len__", "dim", "ndimension", "size", "numel", "nelement", "stride", "storage_offset"),
        *("element_size", "get_device", "type", "result_type", "is_contiguous", "is_complex", "is_conj"),
        *("is_floating_point", "is_inference", "is_neg", "is_pinned", "is_same_size", "is_shared"),
        *("is_signed", "_is_view", "expand_as", "view_as", "reshape_as", "type_as", "to", "requires_grad_"),
        *("retain_grad", "register_hook", "grad", "backward", "_make_dual", "_unpack_dual"),
    ]
)

Pass = Callable[[Sequence[Tensor]], Sequence[Tensor | None]]
"""A linear map of tensors."""


class CannotPlay(Exception):
    """What a pass does for one vector does not tell what it does for another."""


@dataclass(frozen=True)
class _Step:
    """An operation, with places of earlier results where they stand among its arguments."""

    function: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    result: int  # the place of the first result, and the number of results
    count: int
    many: bool  # whether it is a sequence of results
    last: tuple[int, ...] = ()  # the places that no later step reads
    stacked: bool = True  # whether an argument is a Stacked where many vectors are meant

    def of(self, values: Sequence[Any], *, stacked: bool) -> Any:
        """The results for the values in these places."""
        # Arguments one by one, because calls are most of what a small product costs.
        arguments = [values[a.number] if type(a) is Place else a for a in self.arguments]
        options = self.options
        if self.nested:
            arguments, options = fill(arguments, values), fill(options, values)
        return apply(self.function, arguments, options) if stacked else self.function(*arguments, **options)

    @functools.cached_property
    def nested(self) -> bool:
        """Whether a place stands elsewhere than directly among the arguments."""
        inner = [a for a in self.arguments if isinstance(a, (list, tuple, dict))]
        return any(isinstance(leaf, Place) for leaf in leaves_of([*inner, self.options]))


class Tape:
    """A map of tensors, recorded while ``through`` computes it for ``example``.

    The first ``common`` inputs are the same wherever there are many of the others, in which it is linear.

    Raises
    ------
    CannotPlay
        It leaves torch, or what it does depends on values of the inputs: the sizes of results, the next
        operation. Its operations write into tensors, or make more than ``most`` numbers.
    """

    def __init__(
        self, through: Pass, example: Sequence[Tensor], common: int = 0, most: float = math.inf
    ) -> None:
        recorder = _Recorder(example, most)
        with _Watch(recorder), recorder:
            results = through(example)
        if recorder.objection:
            raise CannotPlay(recorder.objection)
        self._outputs = [None if r is None else recorder.place(r) for r in results]
        for result, place in zip(results, self._outputs, strict=True):
            if result is not None and place is None and bool(result.any()):
                raise CannotPlay("a result that does not depend on the vector")
        self._places, self._inputs, self._common = len(recorder.alive), len(example), common
        self.widest = max((t.numel() for t in recorder.alive if t is not None), default=1)
        steps = _used(recorder.steps, [place for place in self._outputs if place is not None])
        self._steps = _marked(steps, range(common, len(example)))

    def held(self) -> list[Tensor]:
        """The tensors that stay in memory for it."""
        leaves = [leaf for step in self._steps for leaf in leaves_of((step.arguments, step.options))]
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor | None]:
        """The map of inputs like those of the example."""
        with torch.no_grad():
            return self._program(*inputs)

    @functools.cached_property
    def _program(self) -> Callable[..., list[Tensor | None]]:
        """All steps as one function, without a loop over them."""
        graph, root = fx.Graph(), dict[str, Tensor]()
        nodes = {number: graph.placeholder(f"input_{number}") for number in range(self._inputs)}

        def argument(leaf: Any) -> Any:
            if isinstance(leaf, Place):
                return nodes[leaf.number]
            if not isinstance(leaf, Tensor):
                return leaf
            name = f"constant_{len(root)}"
            root[name] = leaf
            return graph.get_attr(name)

        for step in self._steps:
            arguments, options = (map_leaves(argument, tree) for tree in (step.arguments, step.options))
            node = graph.call_function(_directly(step.function), arguments, options)
            nodes[step.result] = node
            if step.many:
                for number in range(step.count):
                    nodes[step.result + number] = graph.call_function(operator.getitem, (node, number))
        graph.output([None if place is None else nodes[place] for place in self._outputs])
        graph.eliminate_dead_code()
        module = fx.GraphModule(root, graph)
        # Without what a module does around it, and around its constants.
        vars(module).update(root)
        program: Callable[..., list[Tensor | None]] = module.forward
        return program

    def play(self, inputs: Sequence[Tensor]) -> list[Tensor | None]:
        """The map for each of the k entries along the first axes of all inputs but the common ones."""
        values: list[Any] = [
            tensor if number < self._common else Stacked(tensor, 0) for number, tensor in enumerate(inputs)
        ]
        values += [None] * (self._places - len(values))
        memories = [tensor.untyped_storage()._cdata for tensor in inputs] + [0] * (self._places - len(inputs))
        # How many values share a memory; that of the inputs is not to be written to.
        readers = Counter(memories[: len(inputs)] * 2)
        with torch.no_grad():
            for step in self._steps:
                for number in step.last:
                    if isinstance(values[number], Stacked):
                        values[number].spent = readers[memories[number]] == 1
                result = step.of(values, stacked=step.stacked)
                for number in step.last:
                    readers[memories[number]] -= 1
                    values[number] = None
                many = isinstance(result, (list, tuple))
                for number, value in enumerate(result if many else [result], step.result):
                    if value is not None:
                        tensor = value.tensor if isinstance(value, Stacked) else value
                        values[number] = Stacked(tensor, value.axis) if tensor is not value else tensor
                        memories[number] = memory = tensor.untyped_storage()._cdata
                        readers[memory] += 1
            found = [None if place is None else values[place] for place in self._outputs]
            return [value.first() if isinstance(value, Stacked) else value for value in found]


class Recorded:
    """A pass through a kept graph for rows ``(k, P)``, by a tape that is recorded for the first ones.

    ``through(pieces(v))`` is the pass for one vector, whose results belong to ``leaves``.
    """

    def __init__(
        self, through: Pass, pieces: Callable[[Tensor], list[Tensor]], leaves: Sequence[Tensor]
    ) -> None:
        self._through, self._pieces, self._leaves = through, pieces, leaves
        self._tape: Tape | None = None

    def held(self) -> list[Tensor]:
        """The tensors that stay in memory for further rows."""
        return [] if self._tape is None else self._tape.held()

    def __call__(self, rows: Tensor) -> Tensor:
        if self._tape is not None:
            return self._play(self._tape, rows)
        _keep_freed_memory()
        # It is recorded with a combination of all rows, whose product tells whether theirs are right.
        weights = torch.cos(torch.arange(1, len(rows) + 1, device=rows.device)).to(rows.dtype)
        parts: list[Tensor | None] = []

        def through(pieces: Sequence[Tensor]) -> Sequence[Tensor | None]:
            parts.extend(self._through(pieces))
            return parts

        tape = Tape(through, self._pieces(weights @ rows))
        expected = join(parts, self._leaves)
        results = self._play(tape, rows)
        error = float((weights @ results - expected).norm())
        tolerance = max(torch.finfo(leaf.dtype).eps for leaf in self._leaves) ** 0.5
        if not error <= tolerance * float(results.norm(dim=1).sum()):
            raise CannotPlay("other products than those of single vectors")
        self._tape = tape
        return results

    def _play(self, tape: Tape, rows: Tensor) -> Tensor:
        return join_rows(tape.play(self._pieces(rows)), self._leaves, len(rows))


@functools.cache
def _keep_freed_memory() -> None:
    """Let the C library of Linux keep up to 64 MiB of freed memory for the next operations.

    It keeps twice the size of the largest array that was freed, of those up to 32 MiB, and returns the rest
    to the system (``M_MMAP_THRESHOLD`` in mallopt(3)). A block's many values of a MiB or two went back again
    and again, and the page faults of taking them anew were a fifth of a product's time. This array is never
    written to, and so takes no memory itself.
    """
    torch.empty((1 << 25) - (1 << 16), dtype=torch.uint8)


class _Watch(TorchFunctionMode):  # type: ignore[misc]
    """Objects where a function leaves torch, or reads a tensor unseen.

    A function of torch that is given a tensor passes it to an operation, or returns it. One that does not has
    read its values by itself, as ``torch.tensor([t[0], t[1]])`` does.
    """

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        recorder, kwargs = self._recorder, kwargs or {}
        if func in _READING:
            recorder.objection = "a tensor that is read elsewhere than in torch"
        if recorder.objection or getattr(func, "__name__", "") in _ABOUT:
            return func(*args, **kwargs)
        recorder.taken.clear()
        result = func(*args, **kwargs)
        seen = recorder.taken | {id(leaf) for leaf in leaves_of(result)}
        if any(
            isinstance(leaf, Tensor) and recorder.place(leaf) is not None and id(leaf) not in seen
            for leaf in leaves_of((args, kwargs))
        ):
            recorder.objection = f"values that {getattr(func, '__name__', func)} reads by itself"
        return result


class _Recorder(TorchDispatchMode):  # type: ignore[misc]
    def __init__(self, example: Sequence[Tensor], most: float) -> None:
        super().__init__()
        self.steps: list[_Step] = []
        self._places = {id(tensor): i for i, tensor in enumerate(example)}
        # Nothing that has a place may go, for its number would be another's.
        self.alive: list[Any] = list(example)
        self.objection = ""  # why this cannot be played; nothing is recorded then
        self.taken: set[int] = set()  # the tensors that operations were given, since the watch began anew
        self._left = most
        self._zeros: dict[int, Tensor] = {}
        self._constants: dict[int, Any] = {}  # what the pass itself has made
        self._stale: set[int] = set()
        self._transposed: dict[int, int] = {}  # by place, what it is the transpose of

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # which would import a compiler for seconds, only to leave it out

    def place(self, tensor: Tensor) -> int | None:
        """Where the tensor stands among the results; None for what does not depend on the example."""
        return self._places.get(id(tensor))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.objection:
            return func(*args, **kwargs)
        self.taken |= {id(leaf) for leaf in leaves_of((args, kwargs)) if isinstance(leaf, Tensor)}
        try:
            numbered = self._numbered(args), self._numbered(kwargs)
            depends = any(isinstance(leaf, Place) for leaf in leaves_of(numbered))
        except CannotPlay as error:
            return self._object(str(error), func(*args, **kwargs))
        result = func(*args, **kwargs)
        if depends and _shaped_by_values(func, numbered[0], args):
            return self._object(f"a size that {func} finds in values", result)
        if func._schema.is_mutable and (depends or id(args[0]) not in self._constants):
            func = self._pure(func, args)
            if func is None:
                return self._object("an operation that writes", result)
        if func in _ZEROS:
            self._zeros[id(result)] = result
        if func in _ZEROS or not depends:
            self._constants |= {id(leaf): leaf for leaf in leaves_of(result)}
            return result
        if (same := self._known(func, args, numbered[0], result)) is not None:
            self._places[id(result)] = same
            self.alive.append(result)
            return result
        many = isinstance(result, (tuple, list))
        results = list(result) if many else [result]
        if not all(each is None or isinstance(each, Tensor) for each in results):
            return self._object(f"the result of {func}", result)
        first = len(self.alive)
        self.steps.append(_Step(func, *numbered, first, len(results), many))
        if func is aten.t.default:
            self._transposed[first] = numbered[0][0].number
        for each in results:
            if each is not None:
                self._places[id(each)] = len(self.alive)
                self._left -= each.numel()
            self.alive.append(each)
        return result if self._left > 0 else self._object("many numbers", result)

    def _object(self, reason: str, result: Any) -> Any:
        self.objection = reason
        self.steps.clear()
        self.alive.clear()
        return result

    def _known(self, function: Any, args: Any, numbered: Any, result: Any) -> int | None:
        """The place that has this result already."""
        if function in _ALIASES:
            return int(numbered[0].number)
        if function is aten.t.default:
            return self._transposed.get(numbered[0].number)
        if function is aten.add.Tensor and any(id(arg) in self._zeros for arg in args):
            (kept,) = (arg for arg in args if id(arg) not in self._zeros)
            if kept.shape == result.shape and kept.dtype == result.dtype:
                return self._places[id(kept)]
        return None

    def _pure(self, function: Any, arguments: Sequence[Any]) -> Any:
        """The operation that gives what ``function`` writes into its first argument; None without one."""
        name, target = function._schema.name.removeprefix("aten::"), arguments[0]
        pure = getattr(getattr(aten, name.removesuffix("_"), None), function._overloadname, None)
        if pure is None or id(target) not in self._places:
            return None
        # What shares its memory has other values from here on, and may not be read any more.
        memory = target.untyped_storage()._cdata
        self._stale |= {id(t) for t in self.alive if t is not None and t.untyped_storage()._cdata == memory}
        self._stale.discard(id(target))
        return pure

    def _numbered(self, tree: Any) -> Any:
        return map_leaves(self._place_of, tree)

    def _place_of(self, leaf: Any) -> Any:
        """The place of a result; what does not depend on the example stays."""
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) in self._stale:
            raise CannotPlay("a view of what was written to")
        number = self.place(leaf)
        return leaf if number is None else Place(number)


def _shaped_by_values(function: Any, numbered: Sequence[Any], arguments: Sequence[Any]) -> bool:
    """Whether the sizes of an operation's results depend on values of the inputs."""
    if torch.Tag.dynamic_output_shape not in function.tags:
        return False
    if function is not aten.index.Tensor:
        return True
    return any(
        isinstance(place, Place) and index.dtype in (torch.bool, torch.uint8)
        for place, index in zip(numbered[1], arguments[1], strict=True)
    )


def _directly(function: Any) -> Any:
    """The same operation as ``torch`` or a tensor has it, where arguments are read in half of the time.

    A small operation takes less than reading the arguments of one of ``torch.ops``.
    """
    name = function._schema.name.removeprefix("aten::")
    kinds = types.BuiltinFunctionType, types.MethodDescriptorType
    found = (getattr(place, name, None) for place in (torch, Tensor))
    return next((same for same in found if isinstance(same, kinds)), function)


def _used(steps: list[_Step], wanted: list[int]) -> list[_Step]:
    """The steps that lead to the wanted places, each with the places that it is the last to read."""
    needed, kept = set(wanted), list[_Step]()
    for step in reversed(steps):
        if needed.isdisjoint(range(step.result, step.result + step.count)):
            continue
        places = {
            leaf.number for leaf in leaves_of((step.arguments, step.options)) if isinstance(leaf, Place)
        }
        kept.append(replace(step, last=tuple(places - needed)))
        needed |= places
    return kept[::-1]


def _marked(steps: list[_Step], varying: Iterable[int]) -> list[_Step]:
    """The steps, of which those with an argument that depends on a varying place are stacked."""
    depends, marked = set(varying), list[_Step]()
    for step in steps:
        leaves = leaves_of((step.arguments, step.options))
        stacked = any(isinstance(leaf, Place) and leaf.number in depends for leaf in leaves)
        if stacked:
            depends |= set(range(step.result, step.result + step.count))
        marked.append(replace(step, stacked=stacked))
    return marked

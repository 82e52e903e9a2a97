"""Derivatives by some of the parameters alone, on top of a backend that knows them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, TypeAlias

from ihvp.arguments import check_choice
from ihvp.backend import (
    CAPABILITIES,
    Batch,
    CurvatureBackend,
    Loss,
    Matvec,
    Params,
    SupportsBlocks,
    Vector,
    capabilities_of,
)
from ihvp.errors import InvalidOption, MissingCapability
from ihvp.objective.entries import Entries

Only: TypeAlias = "str | Sequence[str] | Callable[[str], bool]"
"""Names of parameters or of layers, or a function that says of a parameter's name whether it is meant."""


def named_blocks(backend: CurvatureBackend, params: Params) -> Mapping[str, slice]:
    """The part of the flat vector that each array of the parameters is, by its name.

    MissingCapability where the backend does not name them.
    """
    if not isinstance(backend, SupportsBlocks):
        raise MissingCapability(
            type(backend).__name__, "blocks", "Its parameters have no names: take all of them."
        )
    return backend.blocks(params)


def parts_of(blocks: Mapping[str, slice], by: str) -> dict[str, list[slice]]:
    """The entries of each parameter, or of the parameters of each layer together, in their order.

    A layer's name is that of its parameters up to the last ``.`` or ``/``.

    Examples
    --------
    >>> parts_of({"0.weight": slice(0, 6), "0.bias": slice(6, 8), "scale": slice(8, 9)}, "layer")
    {'0': [slice(0, 6, None), slice(6, 8, None)], 'scale': [slice(8, 9, None)]}
    """
    check_choice("by", by, ("parameter", "layer"))
    found: dict[str, list[slice]] = {}
    for name, place in sorted(blocks.items(), key=lambda item: item[1].start):
        parent = name.rpartition("/" if "/" in name else ".")[0]
        found.setdefault(parent or name if by == "layer" else name, []).append(place)
    return found


def restrict(backend: CurvatureBackend, params: Params, only: Only) -> CurvatureBackend:
    """A backend whose vectors are the entries of some parameters; the others stay as they are.

    Losses are evaluated and differentiated as a whole, so that every capability of the backend stays. A name
    stands for that parameter, or for all whose name begins with it and a ``.`` or ``/``. A name that no
    parameter has is an InvalidOption, and so is that none is left.
    """
    blocks = named_blocks(backend, params)
    listed = isinstance(only, (list, tuple, set, frozenset)) and all(isinstance(name, str) for name in only)
    if not (callable(only) or isinstance(only, str) or listed):
        raise InvalidOption("only", only, "names, or a function of a name")
    if callable(only):
        chosen = {name for name in blocks if only(name)}
    else:
        names = [only] if isinstance(only, str) else list(only)
        found = {name: {key for key in blocks if belongs(key, name)} for name in names}
        if unknown := [name for name in names if not found[name]]:
            raise InvalidOption("only", unknown[0], f"names among {', '.join(blocks)}")
        chosen = set().union(*found.values())
    if not chosen:
        raise InvalidOption("only", only, f"at least one of {', '.join(blocks)}")
    size = max(place.stop for place in blocks.values())
    return restricted_to(backend, {name: blocks[name] for name in blocks if name in chosen}, size)


def in_structure(backend: CurvatureBackend, vector: Vector, params: Params) -> Params:
    """A vector in the structure of all parameters, with zeros for those that are not differentiated by."""
    if isinstance(backend, _Restricted):
        params = backend.inner.unflatten(0 * backend.inner.flatten(params), params)
    return backend.unflatten(vector, params)


def belongs(key: str, name: str) -> bool:
    """Whether a name stands for a parameter: its own, or that of a layer or module that has it."""
    return key == name or key.startswith((f"{name}.", f"{name}/"))


def restricted_to(backend: CurvatureBackend, blocks: Mapping[str, slice], size: int) -> CurvatureBackend:
    """A backend whose vectors are these parts of vectors of ``size``, with the capabilities of the other."""
    methods = {
        name: vars(_Capable)[name]
        for capability in capabilities_of(backend)
        for name in vars(_Capable)
        if not name.startswith("_") and hasattr(CAPABILITIES[capability], name)
    }
    kind = type("Restricted", (_Restricted,), methods)
    return kind(backend, blocks, size)  # type: ignore[no-any-return]


class _Restricted:
    def __init__(self, inner: CurvatureBackend, blocks: Mapping[str, slice], size: int) -> None:
        self.inner, self.device, self._blocks, self._size = inner, inner.device, blocks, size
        self.entries = Entries(blocks.values(), size)
        self._part, self._whole = self.entries.of, self.entries.within

    def __reduce__(self) -> tuple[Any, ...]:
        return restricted_to, (self.inner, self._blocks, self._size)

    def flatten(self, params: Params) -> Vector:
        return self._part(self.inner.flatten(params))

    def unflatten(self, vector: Vector, like: Params) -> Params:
        return self.inner.unflatten(self._whole(vector, self.inner.flatten(like)), like)

    def grad(self, loss: Loss, params: Params, batch: Batch) -> Vector:
        return self._part(self.inner.grad(loss, params, batch))

    def hvp(self, loss: Loss, params: Params, batch: Batch, v: Vector) -> Vector:
        return self._part(self.inner.hvp(loss, params, batch, self._whole(v)))


class _Capable(_Restricted):
    """What a backend may have beside; each method belongs to one capability."""

    inner: Any

    def linearize(self, loss: Loss, params: Params, batch: Batch) -> Matvec:
        return _Linear(self.entries, self.inner.linearize(loss, params, batch))

    def hvp_sum(self, loss: Loss, params: Params, batch: Batch, v: Vector, size: int) -> Vector:
        return self._part(self.inner.hvp_sum(loss, params, batch, self._whole(v), size))

    def batch_products(
        self, loss: Loss, params: Params, predict: Callable[..., Any] | None = None
    ) -> Callable[[Batch, Vector], Vector]:
        products = self.inner.batch_products(loss, params, predict)
        return lambda batch, v: self._part(products(batch, self._whole(v)))

    def per_example_grads(self, loss: Loss, params: Params, batch: Batch) -> Vector:
        return self._part(self.inner.per_example_grads(loss, params, batch), axis=1)

    def gnvp(
        self, predict: Callable[..., Any], loss: Callable[..., Any], params: Params, batch: Batch, v: Vector
    ) -> Vector:
        return self._part(self.inner.gnvp(predict, loss, params, batch, self._whole(v)))

    def linearize_gauss_newton(
        self, predict: Callable[..., Any], loss: Callable[..., Any], params: Params, batch: Batch
    ) -> Matvec:
        return _Linear(self.entries, self.inner.linearize_gauss_newton(predict, loss, params, batch))

    def push_forward(
        self, predict: Callable[..., Any], params: Params, batch: Batch, v: Vector
    ) -> Sequence[Vector]:
        return self.inner.push_forward(predict, params, batch, self._whole(v))  # type: ignore[no-any-return]

    def reduce(self, vector: Vector) -> Vector:
        return self.inner.reduce(vector)

    def place(self) -> tuple[int, int]:
        return self.inner.place()  # type: ignore[no-any-return]

    def tell(self, error: BaseException) -> None:
        self.inner.tell(error)

    def product_error(self, loss: Loss, params: Params, batch: Batch, v: Vector) -> float:
        return float(self.inner.product_error(loss, params, batch, self._whole(v)))

    def value(self, loss: Loss, params: Params, batch: Batch) -> Any:
        return self.inner.value(loss, params, batch)

    def example_products(self, loss: Loss, params: Params, batch: Batch, v: Vector) -> Vector:
        return self.inner.example_products(loss, params, batch, self._whole(v))

    def input_derivatives(self, loss: Loss, params: Params, batch: Batch, v: Vector) -> Batch:
        return self.inner.input_derivatives(loss, params, batch, self._whole(v))

    def open(self, predict: Callable[..., Any], params: Params, batch: Batch) -> Any:
        """The layers whose weights are meant, with or without their biases, in the shorter vector."""
        model = self.inner.open(predict, params, batch)

        def moved(part: slice) -> int | None:
            inside = (
                here.start + part.start - place.start
                for place, here in self.entries.places
                if place.start <= part.start and part.stop <= place.stop
            )
            return next(inside, None)

        kept = []
        for number, layer in enumerate(model.layers):
            weight, *bias = map(moved, layer.slices)
            if weight is not None:
                kept.append((number, replace(layer, start=weight, bias=bias[0] if bias else None)))
        numbers = [number for number, _ in kept]

        def pull_back(cotangents: Vector) -> list[Vector]:
            pulled = model.pull_back(cotangents)
            return [pulled[number] for number in numbers]

        return SimpleNamespace(
            shapes=model.shapes,
            layers=[layer for _, layer in kept],
            inputs=[model.inputs[number] for number in numbers],
            outputs=model.outputs,
            pull_back=pull_back,
            output_gradient=model.output_gradient,
            output_hvp=model.output_hvp,
        )

    def cotangent_loss(self, predict: Callable[..., Any]) -> Loss:
        return self.inner.cotangent_loss(predict)  # type: ignore[no-any-return]

    def restore(self, checkpoint: Any, params: Params) -> Params:
        return self.inner.restore(checkpoint, params)

    def blocks(self, params: Params) -> dict[str, slice]:
        names = sorted(self._blocks, key=lambda name: self._blocks[name].start)
        return {name: here for name, (_, here) in zip(names, self.entries.places, strict=True)}


class _Linear:
    """A linearised gradient, by some of the parameters."""

    def __init__(self, entries: Entries, inner: Matvec) -> None:
        self._entries, self._inner = entries, inner
        if hasattr(inner, "nbytes"):
            self.nbytes = inner.nbytes

    def __call__(self, v: Vector) -> Vector:
        return self._entries.of(self._inner(self._entries.within(v)))

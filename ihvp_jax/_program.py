"""A program (jaxpr) gone through twice: for the layers in it, and to compute what goes into them."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from typing import Any, TypeAlias

import jax
from jax.extend.core import Literal

from ihvp_jax._linear import Linear, linear
from ihvp_jax._view import View

Path: TypeAlias = tuple[int, ...]
"""Where an operation is: its number, after those of the operations that it is within."""

_CALLS = ("jit", "pjit", "checkpoint", "remat", "remat2")


class Uses:
    """How a program uses parameters.

    By their paths, ``layers`` are linear maps, and ``biases`` are what is added to all that a layer gives,
    and to nothing else. ``others`` are parts of the vector of parameters that are used in other ways too.
    """

    def __init__(self, program: Any, views: list[View | None]) -> None:
        self.layers: dict[Path, Linear] = {}
        self.biases: dict[Path, View] = {}
        self.others: list[View] = []
        for view in self._follow(program, views, ()):
            self._otherwise(view)

    def _otherwise(self, view: View | None) -> None:
        if view and not view.layer:
            self.others.append(view)

    def _follow(self, program: Any, views: list[View | None], path: Path) -> list[View | None]:
        """Go through a program whose inputs are these; what its outputs are."""
        known = dict(zip(program.invars, views, strict=True))
        uses = Counter(
            variable
            for variables in (*(equation.invars for equation in program.eqns), program.outvars)
            for variable in variables
            if not isinstance(variable, Literal)
        )

        def seen(variable: Any) -> View | None:
            view = None if isinstance(variable, Literal) else known.get(variable)
            # What is used twice is not all that a layer gives to either.
            return view if view and (not view.layer or uses[variable] == 1) else None

        for i, equation in enumerate(program.eqns):
            operands = [seen(variable) for variable in equation.invars]
            if any(operands):
                results = self._operation(equation, operands, (*path, i))
                known.update(zip(equation.outvars, results, strict=False))
        return [seen(variable) for variable in program.outvars]

    def _operation(self, equation: Any, views: list[View | None], path: Path) -> list[View | None]:
        name, params = equation.primitive.name, equation.params
        if name in _CALLS:
            return self._follow(program_of(equation)[0], views, path)
        if name == "scan":
            return self._loop(equation, views, path)
        if name in ("add", "add_any"):
            return self._sum(views, equation.outvars[0].aval.shape)
        weights = [(i, view) for i, view in enumerate(views) if view and not view.layer]
        if len(views) == 1 and views[0]:
            if name == "split" and weights:
                return [*views[0].split(params)]
            laid_out = views[0].through(name, params)
            if laid_out:
                return [laid_out]
        elif len(weights) == 1:
            found = linear(equation, *weights[0])
            if found:
                self.layers[path] = found
                return [found.output(path)]
        for view in views:
            self._otherwise(view)
        return []

    def _loop(self, equation: Any, views: list[View | None], path: Path) -> list[View | None]:
        inside: list[View | None] = []
        params = equation.params
        slices = params["num_consts"] + params["num_carry"]
        for i, view in enumerate(views):
            if view and not view.layer and params["length"] and not params["num_consts"] <= i < slices:
                inside.append(view.in_loop(params["length"], over=i >= slices))
            else:
                self._otherwise(view)
                inside.append(None)
        for view in self._follow(program_of(equation)[0], inside, path):
            self._otherwise(view)
        return []

    def _sum(self, views: list[View | None], shape: tuple[int, ...]) -> list[View | None]:
        views = [view and view.broadcast(shape) for view in views]
        output = next((view for view in views if view and view.layer), None)
        for view in views:
            if output and view and not view.layer and self._is_bias(view, output):
                self.biases[output.layer] = view
                return []
            self._otherwise(view)
        # A layer's own derivative is that by its sum with anything.
        return [output]

    def _is_bias(self, view: View, output: View) -> bool:
        """Whether the view has one number for each number of a layer's output, at every place the same."""

        def steps(view: View) -> list[tuple[int, int]]:
            return [step for step in zip(view.array.shape, view.array.strides, strict=True) if step[0] > 1]

        numbers = math.prod(size for size, stride in steps(output) if stride)
        shared = [stride == 0 for _, stride in self.layers[output.layer].weight.loops]
        return (
            steps(view) == steps(output)
            and numbers == output.vector.size
            and [stride == 0 for _, stride in view.loops] == shared
        )


def program_of(equation: Any) -> tuple[Any, Any]:
    """The program that an operation calls, and its constants."""
    inner = equation.params["jaxpr"]
    return (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())


def run(
    program: Any,
    constants: Any,
    values: Any,
    taps: dict[Path, jax.Array],
    layers: dict[Path, Linear],
    path: Path = (),
) -> tuple[list[Any], dict[Path, jax.Array]]:
    """What a program gives, with a tap added to what each layer gives, and what goes into the layers.

    What is within a loop has a leading axis of its iterations, in taps and inputs alike.
    """
    known = dict(zip((*program.constvars, *program.invars), (*constants, *values), strict=True))
    inputs: dict[Path, jax.Array] = {}

    def value(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else known[variable]

    for i, equation in enumerate(program.eqns):
        here, operands = (*path, i), [value(variable) for variable in equation.invars]
        within = {place: tap for place, tap in taps.items() if place[: len(here)] == here}
        with equation.ctx.manager:
            if within and here not in within:
                results, found = _call(equation, operands, within, layers, here)
                inputs |= found
            else:
                results = _computed(equation, operands)
        if here in within:
            layer = layers[here]
            inputs[here] = layer.read(operands[layer.operand])
            results = [results[0] + layer.place(within[here]).astype(results[0].dtype)]
        known |= zip(equation.outvars, results, strict=True)
    return [value(variable) for variable in program.outvars], inputs


def _computed(equation: Any, operands: list[Any]) -> list[Any]:
    bound = equation.primitive.get_bind_params(equation.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)  # a pair in older versions
    results = equation.primitive.bind(*functions, *operands, **params)
    return list(results) if equation.primitive.multiple_results else [results]


def _call(
    equation: Any, operands: list[Any], taps: dict[Path, jax.Array], layers: dict[Path, Linear], path: Path
) -> tuple[list[Any], dict[Path, jax.Array]]:
    """An operation that calls a program in which there are layers."""
    name, params = equation.primitive.name, equation.params
    inner = partial(run, *program_of(equation), layers=layers, path=path)
    if name != "scan":
        if "policy" in params:
            inner = jax.checkpoint(inner, policy=params["policy"], prevent_cse=params["prevent_cse"])
        return inner(operands, taps)
    first, last = params["num_consts"], params["num_consts"] + params["num_carry"]

    def body(carry: list[Any], slices: Any) -> Any:
        results, inputs = inner([*operands[:first], *carry, *slices[0]], slices[1])
        return results[: last - first], (results[last - first :], inputs)

    options = {key: params[key] for key in ("length", "reverse", "unroll")}
    carry, (results, inputs) = jax.lax.scan(body, operands[first:last], (operands[last:], taps), **options)
    return [*carry, *results], inputs

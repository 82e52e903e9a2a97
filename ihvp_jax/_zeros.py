"""Linear maps without the arrays of zeros that they would keep.

JAX adds an array of zeros to a tangent where the cotangent beside it does not depend on the parameters, as at
the scores of every cross-entropy. In a map that is compiled by itself it looks like any other array.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import compress
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal, jaxpr_as_fun

from ihvp_jax._static import Static

_CALLS = ("jit", "pjit")


def linearized(function: Callable[[Any], Any], point: Any) -> Any:
    """The derivative of a function at a point, a pytree; no value of the trace in it is hidden from JAX.

    JAX before 0.10 hides one in the map where an output does not depend on the argument: zero.
    """
    linear = jax.linearize(function, point)[1]
    needed = depends(linear, point)
    if all(needed):
        return linear
    outputs, structure = jax.tree.flatten(jax.eval_shape(function, point))

    def dependent(point: Any) -> list[jax.Array]:
        return list(compress(jax.tree.leaves(function(point)), needed))

    constant = [
        None if need else (leaf.shape, leaf.dtype) for need, leaf in zip(needed, outputs, strict=True)
    ]
    linear = jax.linearize(dependent, point)[1]
    return jax.tree_util.Partial(_with_zeros, Static((structure, tuple(constant))), linear)


def _with_zeros(form: Static, linear: Any, tangent: Any) -> Any:
    structure, constant = form.value
    return structure.unflatten(_filled(constant, linear(tangent)))


def _filled(constant: Any, values: list[jax.Array]) -> list[jax.Array]:
    """The values, with zeros of the shape and dtype that stand where there is none."""
    left = iter(values)
    return [next(left) if zeros is None else jnp.zeros(*zeros) for zeros in constant]


def depends(function: Callable[[Any], Any], argument: Any) -> list[bool]:
    """Which results of a function are computed from its argument."""
    trace = jax.make_jaxpr(function)(argument).jaxpr
    reached = set(map(id, trace.invars))
    for equation in trace.eqns:
        if any(id(variable) in reached for variable in equation.invars):
            reached.update(map(id, equation.outvars))
    return [id(variable) in reached for variable in trace.outvars]


def without_zeros(make: Callable[[], Any]) -> Any:
    """The linear map that ``make`` gives, a pytree; arrays that are zero by construction are constants of it.

    To be called while JAX traces, where that can be told.
    """
    trace, shapes = jax.make_jaxpr(make, return_shape=True)()
    leaves, structure = jax.tree.flatten(shapes)
    constant = [
        (leaf.shape, leaf.dtype) if zero else None
        for leaf, zero in zip(leaves, _zero_outputs(trace.jaxpr), strict=True)
    ]
    values = jaxpr_as_fun(trace)()
    kept = [value for value, zeros in zip(values, constant, strict=True) if zeros is None]
    return jax.tree_util.Partial(_apply, Static((structure, tuple(constant))), kept)


def _apply(form: Static, kept: list[jax.Array], tangent: Any) -> Any:
    structure, constant = form.value
    return structure.unflatten(_filled(constant, kept))(tangent)


def _zero_outputs(trace: Any) -> list[bool]:
    """Which outputs of a trace are zero whatever goes in, as far as its last operations tell."""
    zeros = set()
    for equation in trace.eqns:
        name, inputs = equation.primitive.name, equation.invars
        if name == "broadcast_in_dim" and isinstance(inputs[0], Literal):
            found = [inputs[0].val == 0]
        elif name in _CALLS:
            found = _zero_outputs(equation.params["jaxpr"].jaxpr)
        else:
            continue
        zeros |= {output for output, zero in zip(equation.outvars, found, strict=True) if zero}
    return [not isinstance(output, Literal) and output in zeros for output in trace.outvars]

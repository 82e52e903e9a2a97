"""Gradients and their finite differences, over numpy arrays or over another backend."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from itertools import accumulate, pairwise
from typing import Any, TypeVar

from array_api_compat import array_namespace

from ihvp.backend import (
    Batch,
    CurvatureBackend,
    GradientFunction,
    Loss,
    Params,
    SupportsBlocks,
    SupportsReduce,
    SupportsValue,
    Vector,
    coarsest_eps,
)
from ihvp.errors import GradientRequired, InvalidOption, ParameterError, WrongDtype, WrongShape, describe
from ihvp_numdiff import _arrays
from ihvp_numdiff._difference import ORDERS, automatic_length, central_difference, norm, power_of_two
from ihvp_numdiff._gradient import flatten_gradient, flatten_gradient_by
from ihvp_numdiff._near import Near, NearArrays, NearVector
from ihvp_numdiff._parts import product_by_parts, tolerance
from ihvp_numdiff._sizes import alike
from ihvp_numdiff._structure import leaves
from ihvp_numdiff._weights import InPlaceWeights, ShiftedWeights

T = TypeVar("T")


class NumdiffBackend:
    """Hessian products as central differences of a gradient.

    ``H v ≈ (g(x + r v) − g(x − r v)) / 2r`` (order 2), or the five-point formula (order 4), for numpy
    parameters with a gradient function, for weights set in place, and for any other backend's
    parameters, whose gradient it then uses.

    Parameters
    ----------
    inner : CurvatureBackend, optional
        The backend of the parameters' framework. It flattens, unflattens and, for a plain loss,
        differentiates once; vectors are of its array type. None: numpy arrays, or nested dicts
        (insertion order), lists and tuples of them, or :class:`~ihvp_numdiff.InPlaceWeights`.
    step : float, optional
        A fixed absolute r, not divided by ``‖v‖``. None: chosen for each v as the notes say, so that it
        does not depend on the scale of v.
    order : {2, 4}
        The order of the truncation error in r, and the number of gradients a difference takes.

    Raises
    ------
    InvalidOption
        ``step`` is not a positive finite number, or ``order`` is neither 2 nor 4.

    Notes
    -----
    A product is good to about ``ε^(2/3)`` (order 2) or ``ε^(4/5)`` (order 4) of its size where the
    gradient is smooth and computed to the precision of its dtype; ``product_error`` estimates it.

    Where the parameters are of like size, a product is one difference, whose r comes from the dtype's
    epsilon, ``1 + ‖x‖`` and ``‖v‖`` (Knoll and Keyes, Jacobian-free Newton–Krylov methods, J. Comput.
    Phys. 193, 2004). It is not one where a size is above 100, where more than a tenth of an array is
    below 3e-5 of one more than the largest size without being zero, or where a third of all is zero. Then
    v is split into parts along sizes within a factor of 1,000, each with a step that starts in parts of
    its own sizes (Dennis and Schnabel, Numerical Methods for Unconstrained Optimization and Nonlinear
    Equations, 1983, section 5.4) and is made shorter or longer by factors of 8 until neighbouring steps
    agree to ``ε^(3/8)`` (Gill, Murray, Saunders and Wright, SIAM J. Sci. Stat. Comput. 4, 1983). A part
    takes at least two differences, mostly two to five.

    Examples
    --------
    The loss ``(w₀ w₁ · 2 − 1)²``, known by its gradient:

    >>> import numpy as np
    >>> from ihvp.backend import GradientFunction
    >>> gradient = GradientFunction(lambda w, batch: 4 * (2 * w[0] * w[1] - 1) * w[::-1])
    >>> w = np.array([1.0, 1 / 3])
    >>> NumdiffBackend().hvp(gradient, w, None, np.ones(2)).round(6).tolist()
    [2.222222, 9.333333]
    >>> NumdiffBackend(step=1e-2).hvp(gradient, w, None, np.ones(2)).round(8).tolist()
    [2.22302222, 9.33413333]
    """

    def __init__(
        self, inner: CurvatureBackend | None = None, *, step: float | None = None, order: int = 2
    ) -> None:
        if order not in ORDERS:
            raise InvalidOption("order", order, "2 or 4")
        self.inner, self.order = inner, order
        self.step = None if step is None else _positive(step)
        self.device: str = "cpu" if inner is None else inner.device

    def flatten(self, params: Params) -> Vector:
        """All parameters as one vector ``(P,)``, a copy.

        Raises
        ------
        ParameterError
            A parameter is not a numpy array of a real floating dtype, or there is none
            (or what ``inner`` raises).
        """
        if self._over_arrays(params):
            return _arrays.flatten(_arrays_of(params))
        assert self.inner is not None
        return self.inner.flatten(params)

    def unflatten(self, vector: Vector, like: Params) -> Params:
        """The exact inverse of ``flatten``, in the structure, shapes and dtypes of ``like``."""
        if self._over_arrays(like):
            return _in_place_of(like, _arrays.unflatten(vector, _arrays_of(like)))
        assert self.inner is not None
        return self.inner.unflatten(vector, like)

    def grad(self, loss: Loss | GradientFunction, params: Params, batch: Batch) -> Vector:
        """The gradient ``(P,)``: what the gradient function returns, or ``inner``'s gradient of a loss.

        Raises
        ------
        GradientRequired
            A plain loss, and no ``inner`` that could differentiate it.
        GradientMismatch
            The gradient function returned another structure, shape or kind of number.
        """
        if self._over_arrays(params):
            arrays = _arrays_of(params)
            return _take_gradient(loss, params, batch, lambda gradient: flatten_gradient(gradient, arrays))
        assert self.inner is not None
        if not isinstance(loss, GradientFunction):
            return self.inner.grad(loss, params, batch)
        return flatten_gradient_by(self.inner, loss.grad(params, batch), params)

    def value(self, loss: Loss, params: Params, batch: Batch) -> Any:
        """``loss(params, batch)`` as the loss returns it, evaluated by ``inner`` where that can."""
        if isinstance(params, InPlaceWeights | ShiftedWeights):
            with params.applied() as weights:
                return loss(weights, batch)
        inner: object = self.inner
        return inner.value(loss, params, batch) if isinstance(inner, SupportsValue) else loss(params, batch)

    def hvp(self, loss: Loss | GradientFunction, params: Params, batch: Batch, v: Vector) -> Vector:
        """``∇² loss · v`` for ``v`` of shape ``(P,)`` or ``(P, k)``; each column has its own step.

        Raises
        ------
        WrongShape, WrongDtype
            ``v`` does not fit the parameters.
        ParameterError
            A gradient function over a container of ``inner``'s framework that cannot be given other values.
        """
        near = self._near(loss, params, batch)
        _check_vector(v, near)
        serves = self._one_step_serves(near)

        def product(column: Vector) -> Vector:
            if serves:
                return self._product(near, column, *self._step(near, column))
            return product_by_parts(near, column, self.order)[0]

        if v.ndim == 1:
            return product(v)
        xp: Any = array_namespace(v)
        return xp.stack([product(v[:, k]) for k in range(v.shape[1])]).T

    def product_error(self, loss: Loss | GradientFunction, params: Params, batch: Batch, v: Vector) -> float:
        """An estimate of ``‖computed product − exact product‖`` for ``v`` of shape ``(P,)``.

        The product is compared with that of half the step. Halving takes away most of the truncation
        error (all but 1/4 or 1/16 of it) and doubles the rounding error, which is independent of the
        first one, so that the difference is 0.75 to about 2.2 times the true error, whichever of the two
        dominates. With few parameters the two rounding errors can cancel by chance; the estimate is
        therefore never below ``0.1 ε ‖g‖ / r``, what the last rounding of a gradient costs. It takes twice
        the gradients of a product, and one.

        A step that is far too long or too short has a neighbour that is as wrong. Where the two differ by
        more than ``ε^(3/8)`` of the product, it is therefore compared also with the product by searched
        steps (see the notes of the class). Where the product is such a one itself, the estimate is
        what its neighbours disagree by. A gradient that changes over less than the spacing of the dtype's
        numbers at x is beyond both.
        """
        near = self._near(loss, params, batch)
        _check_vector(v, near)
        if norm(v) == 0.0:
            return 0.0
        if not self._one_step_serves(near):
            return product_by_parts(near, v, self.order)[1]
        scale, step = self._step(near, v)
        product = self._product(near, v, scale, step)
        size = norm(product)
        error = norm(product - self._product(near, v, scale, step / 2))
        if math.isnan(error):
            return error
        if size > 0.0 and error <= tolerance(near.epsilon) * size:
            return max(error, near.epsilon * size, 0.1 * near.rounding() * scale / step)
        reference, uncertainty = product_by_parts(near, v, self.order)
        return max(error, near.epsilon * size, norm(product - reference) + uncertainty)

    def blocks(self, params: Params) -> Mapping[str, slice]:
        """The part of the flat vector that each array is, by its place in the structure: ``w.0``.

        With ``inner``, by its names; all parameters are one block where it has none.
        """
        inner: object = self.inner
        if not self._over_arrays(params) and isinstance(inner, SupportsBlocks):
            return inner.blocks(params)
        named = [("params", int(self.flatten(params).shape[0]))]
        if self._over_arrays(params):
            arrays = _arrays_of(params)
            sizes = [array.size for array in _arrays.floating_arrays(arrays)]
            named = list(zip([_dotted(path) for path, _ in leaves(arrays)], sizes, strict=True))
        ends = list(accumulate((size for _, size in named), initial=0))
        return {path: slice(*part) for (path, _), part in zip(named, pairwise(ends), strict=True)}

    def reduce(self, vector: Vector) -> Vector:
        """What ``inner`` adds up over its processes."""
        inner: object = self.inner
        return inner.reduce(vector) if isinstance(inner, SupportsReduce) else vector

    def place(self) -> tuple[int, int]:
        """That of ``inner`` among its processes."""
        inner: object = self.inner
        return inner.place() if isinstance(inner, SupportsReduce) else (0, 1)

    def tell(self, error: BaseException) -> None:
        """Told by ``inner``."""
        inner: object = self.inner
        if isinstance(inner, SupportsReduce):
            inner.tell(error)

    def _over_arrays(self, params: Params) -> bool:
        return self.inner is None or isinstance(params, InPlaceWeights | ShiftedWeights)

    def _near(self, loss: Loss | GradientFunction, params: Params, batch: Batch) -> Near:
        if self._over_arrays(params):

            def take_gradient(arrays: Params, use: Callable[[Any], Any]) -> Any:
                return _take_gradient(loss, _in_place_of(params, arrays), batch, use)

            return NearArrays(take_gradient, _arrays_of(params))

        def gradient(x: Vector) -> Vector:
            shifted = self.unflatten(x, like=params)
            if isinstance(loss, GradientFunction):
                _check_form(shifted, params)
            return self.grad(loss, shifted, batch)

        assert self.inner is not None
        return NearVector(gradient, self.flatten(params), coarsest_eps(self.inner, params))

    def _one_step_serves(self, near: Near) -> bool:
        return self.step is not None or alike(near.arrays)

    def _step(self, near: Near, v: Vector) -> tuple[float, float]:
        """A scale and a step, such that ``r = step / scale``; the scale 0 for ``v = 0``."""
        if self.step is not None:
            return 1.0, self.step
        v_norm = norm(v)
        if v_norm == 0.0:
            return 0.0, 1.0
        length = automatic_length(near.norm(), near.epsilon, self.order)
        step, smallest = power_of_two(length / v_norm), _smallest_normal(v)
        if smallest <= step <= 1 / smallest:
            return 1.0, step
        # Dividing v by its size first keeps an r that is huge or tiny out of a small dtype.
        scale = power_of_two(v_norm)
        return scale, power_of_two(length / (v_norm / scale))

    def _product(self, near: Near, v: Vector, scale: float, step: float) -> Vector:
        if scale == 0.0:
            xp: Any = array_namespace(v)
            return xp.zeros_like(v)
        product = central_difference(lambda step: near.difference(v, scale, step), step, self.order)
        if scale != 1.0:
            product *= scale
        return product


def _positive(step: float) -> float:
    try:
        if 0 < float(step) < math.inf:
            return float(step)
    except (TypeError, ValueError):
        pass
    raise InvalidOption("step", step, "a positive finite number, or None to choose it automatically")


def _arrays_of(params: Params) -> Params:
    return params.values() if isinstance(params, InPlaceWeights | ShiftedWeights) else params


def _in_place_of(params: Params, arrays: Params) -> Params:
    """Parameters like ``params`` with the values of ``arrays``."""
    if isinstance(params, InPlaceWeights | ShiftedWeights):
        return ShiftedWeights(params if isinstance(params, InPlaceWeights) else params.weights, arrays)
    return arrays


def _take_gradient(loss: Loss | GradientFunction, params: Params, batch: Batch, use: Callable[[Any], T]) -> T:
    """What ``use`` makes of the gradient, while weights that are set in place are still set."""
    in_place = isinstance(params, InPlaceWeights | ShiftedWeights)
    if not isinstance(loss, GradientFunction):
        raise GradientRequired("weights that are set in place" if in_place else describe(params))
    if not in_place:
        return use(loss.grad(params, batch))
    with params.applied() as weights:
        return use(loss.grad(weights, batch))


def _smallest_normal(v: Vector) -> float:
    return float(array_namespace(v).finfo(v.dtype).smallest_normal)


def _check_form(shifted: Params, params: Params) -> None:
    """Refuse containers, such as modules, that a loss can be given with other values, but not a caller."""
    known = isinstance(params, Mapping | list | tuple | InPlaceWeights | ShiftedWeights)
    if not known and not hasattr(params, "shape") and not isinstance(shifted, type(params)):
        raise ParameterError(
            f"A gradient function over {describe(params)} cannot be called at other values of its "
            "parameters; expected a dict, list or tuple of arrays. Differentiate a loss instead (loss= in "
            "place of grad=), or wrap the weights in ihvp_numdiff.InPlaceWeights(read, write)."
        )


def _check_vector(v: Vector, near: Near) -> None:
    if v.ndim not in (1, 2) or v.shape[0] != near.size or 0 in v.shape:
        raise WrongShape(v.shape, near.size)
    if v.dtype != near.dtype:
        raise WrongDtype(v.dtype, near.dtype)


def _dotted(path: str) -> str:
    """``w.0`` for ``params['w'][0]``."""
    return re.sub(r"\['?(.*?)'?\]", r".\1", path.removeprefix("params")).removeprefix(".") or "params"

r"""Whether a framework's product with the Hessian is the derivative of its gradient.

At a point x, one product with the Hessian along u is compared with two differences of the gradient g:

.. math::
    D_1 = \frac{g(x + h u) - g(x)}{h}, \qquad
    D_2 = \frac{g(x + f u) - g(x + h u)}{f - h}, \qquad h \ll f .

A product that agrees with either is right: that is no accident. One that agrees with neither may be right
too, because the differences are wrong at kinks (ReLU, max-pooling), by rounding, and where the curvature is
narrower than a step. But then they are wrong in different ways, on intervals of different lengths that share
only an end. So the product is called wrong where the two differences agree with each other much better than
with it. Two more gradients then speak for it, if any can: one a long step away, for losses that compute in
fewer bits than the parameters have and stand still over short steps; one at other parameters, for saturated
models, whose gradient is small where its rounding is not.

Losses with kinks are told from wrong products by three choices. Steps are as short as rounding permits,
because an interval holds as many kinks as it is long. The point x lies beside the parameters, a distance
ρ ≫ h along u from them. A kink at the parameters themselves (zero inputs and biases, ties, L1 at 0) stays
behind: to first order, what is zero there keeps its sign along a ray. And parameters with a gradient of
exactly zero do not move along u, because frameworks leave some out of the gradient on purpose (the padding of
an embedding).
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Batch, CurvatureBackend, Loss, Params, Vector
from ihvp.data import count_examples, take_examples
from ihvp.space import VectorSpace

# The differences must agree with each other so many times better than with the product. Where it is right,
# this asks of two errors to agree; those of kinks, rounding and truncation differ by about themselves.
_AGREEMENT, _AGREEMENT_OF_ONE = 8.0, 128.0
# Rounding of a gradient is taken to be within so many ε of the largest gradient seen.
_ROUNDING = 16.0
# A step for which even half precision is not too coarse, and how many times closer to the difference over it
# a product must be than the differences over short steps.
_LONGEST, _CLOSER = 2**-6, 2.0
# Entries at a time that a processor's cache holds with all that is made of them.
_IN_CACHE = 2**14


@dataclass(frozen=True)
class Comparison:
    """What a product with the Hessian and a few gradients say of each other."""

    # "inconclusive" where the differences of the gradient are not good enough to judge by
    outcome: Literal["passed", "wrong", "inconclusive"]
    error: float  # ‖H u − D‖ / max(‖H u‖, ‖D‖) with a difference of gradients D; NaN where it is unknown
    allowed: float  # the largest error that passes; NaN where no error could be told
    why: str  # the reason, in one sentence


@dataclass(frozen=True)
class _Precision:
    """What can be told in a precision, and the lengths along u for it, as parts of the parameters' sizes."""

    eps: float
    allowed: float  # the error that a right product may have
    rows: int  # how many examples are enough
    # place, near, far: ρ, h and f
    place: float
    near: float
    far: float
    spread: float  # how much more, or less, than its own size allows an entry may move


_PRECISIONS = (
    _Precision(eps=2**-52, allowed=0.01, rows=32, place=2**-20, near=2**-29, far=2**-20, spread=2**8),
    _Precision(eps=2**-23, allowed=0.1, rows=8, place=2**-8, near=2**-15, far=2**-11, spread=2),
)


def compare_with_gradients(
    backend: CurvatureBackend, loss: Loss, params: Params, batch: Batch, space: VectorSpace
) -> Comparison:
    """Compare one product ``∇² loss · u`` with differences of the gradient along u.

    It takes the product and two gradients where they agree, a third gradient where they do not, and two more
    only before it calls the product wrong. All are of the first rows of the batch, 32 in float64 and 8 in
    float32, or of more where these cannot be evaluated or have no gradient. It holds five vectors beside what
    the backend needs.

    The backend is one that differentiates losses: products made from gradients have nothing to be compared
    with. An error passes up to 1 % of the product in float64, 10 % in float32; half precision is too coarse
    to tell. What the loss or the backend raises on the whole batch is not caught.

    >>> import numpy as np
    >>> class Sines:
    ...     device = "cpu"
    ...     flatten = staticmethod(np.array)
    ...     unflatten = staticmethod(lambda vector, like: vector)
    ...     grad = staticmethod(lambda loss, w, batch: np.sin(w))
    ...     hvp = staticmethod(lambda loss, w, batch, v: -np.cos(w) * v)
    >>> w = np.array([0.3, -2.0])
    >>> comparison = compare_with_gradients(Sines(), None, w, None, VectorSpace.of(w))
    >>> comparison.outcome, round(comparison.error, 3)
    ('wrong', 2.0)
    """
    for precision in _PRECISIONS:
        if space.product_eps <= precision.eps:
            with suppress(_TooCoarse):
                return _Check(backend, loss, params, space, precision).on_few_rows(batch)
    return Comparison(
        "inconclusive", math.nan, math.nan, "parameters in half precision are too coarse for differences"
    )


class _TooCoarse(Exception):
    """A parameter has no numbers as close together as the shortest step asks for."""


class _Uninformative(Exception):
    """The gradient is zero or not finite."""


@dataclass(frozen=True, eq=False)
class _Check:
    backend: CurvatureBackend
    loss: Loss
    params: Params
    space: VectorSpace
    precision: _Precision

    def on_few_rows(self, batch: Batch) -> Comparison:
        """The comparison on the first rows; where they do not tell, on more of them, and then on all."""
        for rows in (self.precision.rows, 32 * self.precision.rows):
            # What a loss raises on fewer rows is its own, and others may have a gradient.
            with suppress(Exception):
                if count_examples(batch) > rows:
                    return self.run(take_examples(batch, 0, rows))
        try:
            return self.run(batch)
        except _Uninformative as error:
            return self.inconclusive(str(error))

    def run(self, batch: Batch) -> Comparison:
        """The comparison on this batch."""
        near, allowed = self.precision.near, self.precision.allowed
        x, u = self.ray()
        if not np.all(algebra.to_numpy(algebra.axpy(self.moved(x, near, u), -1.0, x))):
            raise _TooCoarse
        start = self.gradient(x, batch)
        size = _size(start)
        point = self.moved(x, near, _where_nonzero(start, u))
        del u
        end = self.gradient(point, batch)
        _size(end)
        # The displacement is what rounding left of it.
        u = algebra.scale(algebra.axpy(point, -1.0, x), 1 / near)
        del point
        product = self.backend.hvp(self.loss, self.backend.unflatten(x, self.params), batch, u)
        change, *parts = _compared(start, end, product)
        predicted, moved = (
            float(algebra.norms(x, part)) for x, part in zip((product, change), parts, strict=True)
        )
        if not math.isfinite(predicted):
            return self.inconclusive("the product with the Hessian is not finite")
        moved /= near
        missed, part = _reduced(change, near, product)
        discrepancy = float(algebra.norms(missed, part)) / near
        error = discrepancy / max(predicted, moved) if discrepancy else 0.0
        if error <= allowed:
            return self.passed(error)
        if max(predicted, size) < self.smallest:
            return self.inconclusive("the gradient is close to the smallest numbers of its dtype", error)

        between = self.precision.far - near
        x = self.moved(x, self.precision.far, u)
        beyond = self.gradient(x, batch)
        if not algebra.all_finite(beyond):
            return self.inconclusive("the gradient is not finite nearby", error)
        missed_beyond = algebra.axpy(algebra.axpy(end, between, product), -1.0, beyond)
        if predicted > 0 and _norm(missed_beyond) <= allowed * between * predicted:
            return self.passed(_norm(missed_beyond) / (between * predicted))
        disagreement = _norm(algebra.axpy(missed, near / between, missed_beyond)) / near
        del start, change, missed
        # One or two numbers agree by accident more easily than many.
        agreement = max(_AGREEMENT, _AGREEMENT_OF_ONE / self.space.size**2)
        if agreement * disagreement > min(discrepancy, moved):
            return self.inconclusive("differences of gradients disagree with each other too", error)
        if _coarse_part(beyond, product, self.precision.eps) > allowed:
            return self.inconclusive("the gradient has a lower precision than the parameters", error)

        # What is rounded to few bits inside the loss stands still over short steps, but not over long ones.
        beyond = algebra.axpy(beyond, _LONGEST, product)
        del product
        x = algebra.axpy(x, _LONGEST, u)
        missed_longest = algebra.axpy(self.gradient(x, batch), -1.0, beyond)
        by_product = _norm(missed_longest)
        by_differences = _norm(algebra.axpy(missed_longest, _LONGEST / between, missed_beyond))
        if error > 0.1 and _CLOSER * by_product < by_differences:
            return self.inconclusive("the product agrees with longer differences of gradients", error)

        # Where a model is saturated the gradient is small, and its rounding is not.
        del x, u
        elsewhere = self.gradient(algebra.scale(self.ray()[1], -0.125), batch)
        if algebra.all_finite(elsewhere):
            size = max(size, _norm(elsewhere))
        if _norm(missed_beyond) <= _ROUNDING * self.precision.eps * size:
            return self.inconclusive("the gradient changes by no more than its rounding", error)
        return Comparison(
            "wrong",
            error,
            allowed,
            "two differences of gradients agree with each other, not with the product",
        )

    def ray(self) -> tuple[Vector, Vector]:
        """A point beside the parameters, and the direction in which it lies."""
        x = self.backend.flatten(self.params)
        u = self.space.asarray(_direction(algebra.to_numpy(x), self.precision.spread))
        return self.held(algebra.axpy(x, self.precision.place, u)), u

    def moved(self, x: Vector, length: float, u: Vector) -> Vector:
        """``x + length u``."""
        return self.held(_moved(x, length, u))

    def held(self, point: Vector) -> Vector:
        """The point as the dtypes of the parameters hold it."""
        if self.space.product_eps == self.space.eps:
            return point  # all of them are that of vectors
        return self.backend.flatten(self.backend.unflatten(point, self.params))

    def gradient(self, point: Vector, batch: Batch) -> Vector:
        return self.backend.grad(self.loss, self.backend.unflatten(point, self.params), batch)

    def passed(self, error: float) -> Comparison:
        return Comparison(
            "passed", error, self.precision.allowed, "the product agrees with a difference of gradients"
        )

    @property
    def smallest(self) -> float:
        """Gradients below have lost digits to underflow on the way."""
        info = self.space.xp.finfo(self.space.dtype)
        return float(info.smallest_normal) / float(info.eps) ** 2

    def inconclusive(self, why: str, error: float = math.nan) -> Comparison:
        return Comparison("inconclusive", error, self.precision.allowed, why)


def _direction(x: NDArray[np.floating], spread: float) -> NDArray[np.floating]:
    """Entries of random signs and of the typical size of those of x, within ``spread`` of each one's own.

    Parameters of very unlike sizes have curvature of very unlike lengths.
    """
    tiny = np.finfo(x.dtype).tiny / np.finfo(x.dtype).eps
    sample = np.abs(x[:: max(1, x.size >> 16)])
    sample = sample[sample > tiny]
    typical = np.median(sample) if sample.size else np.ones((), x.dtype)
    u, rng = np.empty_like(x), np.random.default_rng(0)
    for start in range(0, x.size, _IN_CACHE):
        part = x[start : start + _IN_CACHE]
        sizes = np.abs(part)
        with np.errstate(over="ignore"):
            allowed = np.clip(typical, sizes / spread, sizes * spread)
        allowed[sizes <= tiny] = typical
        # None is so small that an entry stays. The first leads away from zero, so that −u has another sign.
        factors = rng.random(part.size, dtype=x.dtype)
        factors -= 0.5
        if start == 0:
            factors[0] = abs(factors[0])
        factors += np.copysign(x.dtype.type(0.25), factors)
        np.copysign(2 * allowed * factors, factors * part, out=u[start : start + _IN_CACHE])
    return u


def _coarse_part(gradient: Vector, product: Vector, eps: float) -> float:
    """The part of a product in whose entries the gradient has no more than half the digits that ε implies."""
    entries = algebra.to_numpy(gradient)
    digits = np.ldexp(np.frexp(entries)[0], round(1 - math.log2(eps)) // 2)
    # What is left where terms cancel has few digits too.
    significant = np.abs(entries) > eps**0.5 * np.max(np.abs(entries))
    coarse = significant & (digits == np.rint(digits))
    if np.count_nonzero(coarse) <= 1 + coarse.size / 64:  # such as come up by accident
        return 0.0
    product = algebra.to_numpy(product)
    return float(algebra.norms(product[coarse]) / algebra.norms(product))


@algebra.fused()
def _where_nonzero(gradient: Vector, u: Vector) -> Vector:
    return array_api_compat.array_namespace(u).where(gradient != 0, u, 0.0)


@algebra.fused()
def _moved(x: Vector, length: float, u: Vector) -> Vector:
    return x + length * u if array_api_compat.is_jax_array(x) else algebra.axpy(algebra.copy(x), length, u)


@algebra.fused(0)
def _compared(start: Vector, end: Vector, product: Vector) -> tuple[Vector, Any, Any]:
    """``end − start``, and the parts of what the norms of a product and of it sum up."""
    change = algebra.axpy(algebra.scale(start, -1.0), 1.0, end)
    return change, algebra.dot_parts(product, product), algebra.dot_parts(change, change)


@algebra.fused(0)
def _reduced(change: Vector, near: float, product: Vector) -> tuple[Vector, Any]:
    missed = algebra.axpy(change, -near, product)
    return missed, algebra.dot_parts(missed, missed)


def _size(gradient: Vector) -> float:
    size = _norm(gradient)
    if not math.isfinite(size):
        raise _Uninformative("the gradient is not finite")
    if size == 0.0:
        raise _Uninformative("the gradient is zero")
    return size


def _norm(x: Vector) -> float:
    return float(algebra.norms(x))

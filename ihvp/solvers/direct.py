"""Solving with the matrix itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import array_api_compat
import numpy as np
import scipy.linalg

from ihvp import algebra
from ihvp.arguments import check_choice
from ihvp.backend import Vector
from ihvp.errors import NonFinite, NotSymmetric
from ihvp.memory import require_memory
from ihvp.operators.base import LinearOperator, Shifted
from ihvp.progress import Monitor
from ihvp.solution import Solution
from ihvp.solvers import diagnosis
from ihvp.solvers.base import Solver
from ihvp.solvers.refinement import Refinement
from ihvp.solvers.tolerances import check_tolerances

# The matrix, its factor, and what the factorisation works on.
_MATRICES = 3


@dataclass(eq=False)
class Factorisation:
    """``A + λI``, factorised."""

    operator: Shifted  # the matrix by its products, for the certificate
    # r ↦ (A + λI)⁻¹ r for vectors and blocks; the pseudo-inverse where the matrix is singular
    solve: Callable[[Vector], Vector]
    # The lowest and the highest eigenvalue, where the matrix is not positive definite.
    extremes: tuple[float, float] = (np.nan, np.nan)
    # indefinite, singular: whether an eigenvalue is negative, or zero, beyond rounding
    indefinite: bool = False
    singular: bool = False
    owed: int = 0  # products that the matrix took and no solution has been charged with
    largest: float = 0.0  # the norm of the matrix, from below


@dataclass(frozen=True, kw_only=True)
class Direct(Solver):
    r"""Forms :math:`A + \lambda I` by P products and factorises it, once for any number of right-hand sides.

    Cholesky's factorisation where the matrix is positive definite, the eigendecomposition where it is not.
    Residuals by fresh products certify the answer; where one misses the tolerance, iterative refinement goes
    on from it (Higham, "Accuracy and Stability of Numerical Algorithms", chapter 12). Takes the memory of
    three matrices and 64 vectors at a time. Products that carry an error, as finite differences do, give a
    matrix that is symmetric up to that error: its symmetric part is taken. Several dampings share the
    products.

    Parameters
    ----------
    rtol : float, optional
        A column is solved when ``‖v − (A + λI) x‖ ≤ max(rtol ‖v‖, atol)``. By default the square root of the
        parameters' machine epsilon: 1.5e-8 in float64, 3.5e-4 in float32, 0.03 in float16, 0.09 in bfloat16.
    atol : float
    on_indefinite : {"raise", "solve"}
        What to do where an eigenvalue is negative: raise :class:`~ihvp.errors.IndefiniteCurvature`, or give
        the exact solution, which is a saddle point of :math:`\frac12 x^T (A + \lambda I) x - v^T x`.

    Raises
    ------
    TooLarge
        The matrix does not fit in memory; found before any product.
    NotSymmetric
        The matrix is not symmetric, beyond rounding and the error of the products.
    InvalidOption
        An option is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> A = ihvp.Dense(np.array([[4.0, 1.0], [1.0, 3.0]]))
    >>> ihvp.solve(A, np.array([1.0, 2.0]), solver=ihvp.Direct()).x.round(6)
    array([0.090909, 0.636364])
    """

    rtol: float | None = None
    atol: float = 0.0
    on_indefinite: Literal["raise", "solve"] = "raise"

    def __post_init__(self) -> None:
        check_tolerances(self.rtol, self.atol, None)
        check_choice("on_indefinite", self.on_indefinite, ("raise", "solve"))

    def prepare(self, operator: LinearOperator, damping: float) -> Factorisation:
        return next(self.prepare_shifted(operator, [damping]))

    def apply(self, prepared: Factorisation, v: Vector, *, x0: Vector | None, monitor: Monitor) -> Solution:
        rtol = prepared.operator.space.product_eps**0.5 if self.rtol is None else self.rtol
        course = Refinement(
            prepared.operator, v, rtol=rtol, atol=self.atol, x0=x0, monitor=monitor, largest=prepared.largest
        )
        course.operator.products, prepared.owed = course.operator.products + prepared.owed, 0
        while course.pending.size:
            numbers, (x, r) = course.pending, course.take()
            correction = prepared.solve(r)
            solvable = not prepared.singular and algebra.all_finite(correction)
            if algebra.all_finite(correction):
                x = algebra.axpy(x, 1.0, correction)
            del r, correction
            reasons = np.full(numbers.shape, "reached" if solvable else "singular", dtype=object)
            course.log.step(numbers, course.check(x, reasons))
        solution = course.solution()
        if prepared.indefinite and self.on_indefinite == "raise":
            refused = dataclasses.replace(solution, converged=False, stop_reason="indefinite")
            raise diagnosis.indefinite_spectrum(prepared.operator, refused, *prepared.extremes)
        course.raise_failure(solution, course.log.iterations, definite=False)
        return solution

    def prepare_shifted(self, operator: LinearOperator, dampings: Sequence[float]) -> Iterator[Factorisation]:
        matrix, error = _symmetric_matrix(operator)
        largest = float(algebra.norms(matrix).max())
        for number, damping in enumerate(dampings):
            factorisation = _factorise(Shifted(operator, damping), matrix, error)
            factorisation.largest = largest + damping
            factorisation.owed = 0 if number else operator.space.size
            yield factorisation


def require_matrix(operator: LinearOperator) -> None:
    """Refuse an operator whose matrix and its factorisation do not fit in memory."""
    space = operator.space
    require_memory(
        space,
        _MATRICES * space.size**2,
        space.itemsize,
        f"A dense matrix of P = {space.size:,} parameters with its factorisation",
        "Use CG or MINRES, which need a few vectors.",
    )


def _symmetric_matrix(operator: LinearOperator) -> tuple[Vector, float]:
    """``(A + Aᵀ) / 2`` of the computed products, and the Frobenius norm of what that took away."""
    require_matrix(operator)
    space = operator.space
    matrix = operator.to_dense()
    if not algebra.all_finite(matrix):
        raise NonFinite("A product with the operator")
    difference = matrix - matrix.mT
    asymmetry = float(np.linalg.norm(algebra.norms(difference)))
    if asymmetry > 0:
        probe = space.identity_columns(0, 1)[:, 0]
        noise = space.size**0.5 * operator.product_error(probe)
        allowed = 10 * (space.product_eps**0.5 * float(np.linalg.norm(algebra.norms(matrix))) + noise)
        if asymmetry > allowed:
            raise _not_symmetric(matrix, difference, allowed)
        matrix = algebra.axpy(algebra.copy(matrix), -0.5, difference)
    return matrix, asymmetry / 2


def _not_symmetric(matrix: Vector, difference: Vector, allowed: float) -> NotSymmetric:
    xp = array_api_compat.array_namespace(matrix)
    worst = int(xp.argmax(xp.reshape(xp.abs(difference), (-1,))))
    i, j = divmod(worst, matrix.shape[0])
    return NotSymmetric(
        float(matrix[i, j]), float(matrix[j, i]), allowed, f"the unit vectors u = e_{i} and v = e_{j}"
    )


def _factorise(operator: Shifted, matrix: Vector, error: float) -> Factorisation:
    solve = _cholesky(_damped(matrix, operator))
    if solve is not None:
        return Factorisation(operator, solve)
    xp = array_api_compat.array_namespace(matrix)
    eigenvalues, basis = xp.linalg.eigh(_damped(matrix, operator))
    values = np.asarray(algebra.to_numpy(eigenvalues), dtype=np.float64)
    # Below this an eigenvalue of the exact matrix may be 0: rounding, and the products' own error.
    eps = float(xp.finfo(matrix.dtype).eps)
    floor = max(values.size * eps * float(np.abs(values).max()), error)
    zero = np.abs(values) <= floor
    inverse = np.divide(1.0, values, out=np.zeros(values.size), where=~zero)
    scale = algebra.coefficients(inverse, basis)

    def solve_spectrally(r: Vector) -> Vector:
        return (basis * scale) @ (basis.mT @ r)

    return Factorisation(
        operator,
        solve_spectrally,
        (float(values[0]), float(values[-1])),
        indefinite=bool(values[0] < -floor),
        singular=bool(np.any(zero)),
    )


def _damped(matrix: Vector, operator: Shifted) -> Vector:
    space = operator.space
    identity = space.xp.eye(space.size, dtype=matrix.dtype, device=space.device)
    return algebra.xpay(identity, operator.shift, matrix)


def _cholesky(matrix: Vector) -> Callable[[Vector], Vector] | None:
    """``r ↦ M⁻¹ r``, or None where M is not positive definite; M is given up."""
    xp = array_api_compat.array_namespace(matrix)
    # LAPACK's error, torch's of the same name, which is a RuntimeError, or NaN in JAX.
    try:
        if array_api_compat.is_numpy_array(matrix):
            # The transpose of a symmetric matrix in C order is itself in LAPACK's order: no copy is made.
            factor = scipy.linalg.cho_factor(matrix.T, lower=True, overwrite_a=True, check_finite=False)
            return partial(scipy.linalg.cho_solve, factor, check_finite=False)
        lower = xp.linalg.cholesky(matrix)
    except (np.linalg.LinAlgError, RuntimeError):
        return None
    if not algebra.all_finite(lower):
        return None
    # The Array API has no triangular solve. The inverse of the factor keeps the answer symmetric and makes
    # of each solve two products; what it loses, iterative refinement gives back.
    inverse = xp.linalg.inv(lower)
    return lambda r: inverse.mT @ (inverse @ r)

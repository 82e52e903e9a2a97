"""Operators from a few eigenpairs, of low and of full rank, with everything about them in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.arguments import check_instance, check_number, shape_of
from ihvp.backend import Vector
from ihvp.eigenpairs import Eigenpairs
from ihvp.errors import InvalidOption, VectorError, describe
from ihvp.operators.base import LinearOperator
from ihvp.space import VectorSpace

# What rounding leaves of a zero, in machine epsilons of the largest eigenvalue.
_ZERO = 10


class Spectral(LinearOperator):
    r"""The operator with K known eigenpairs and one eigenvalue λ̃ on all that is orthogonal to them.

    .. math:: A = Q \Lambda Q^\top + \tilde\lambda\, (I - Q Q^\top)

    Products, forms and solves take O(KP), the trace and the determinant O(K). A VectorError says that the
    shapes do not fit, a number is not finite, or the vectors are not orthonormal.
    """

    def __init__(self, eigenpairs: Eigenpairs, tail: float) -> None:
        self.values, self.vectors = _checked(eigenpairs)
        super().__init__(VectorSpace.of(self.vectors[:, 0]))
        # Nothing is orthogonal to P vectors; what rounding leaves is not to be multiplied.
        self._codimension = self.space.size - self.values.size
        self.tail = tail if self._codimension else 0.0

    def apply(self, v: Vector) -> Vector:
        return self.function(v, lambda values: values)

    def function(self, v: Vector, of: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Vector:
        """``f(A) v`` of a flat native vector or block, with f, ``of``, applied to the eigenvalues."""
        values = of(self.values)
        rest = float(of(np.asarray(self.tail))) if self._codimension else 0.0
        block = v[:, None] if v.ndim == 1 else v
        projections = algebra.gram(self.vectors, block)
        result = algebra.add_product(rest * block, self.vectors, (values - rest)[:, None] * projections)
        return result[:, 0] if v.ndim == 1 else result

    def quadratic_form(self, x: Any) -> float | NDArray[np.float64]:
        flat, _ = self.space.enter(x)
        block = flat[:, None] if flat.ndim == 1 else flat
        squares = algebra.gram(self.vectors, block) ** 2
        forms = (self.values - self.tail) @ squares + self.tail * algebra.norms(block) ** 2
        return float(forms[0]) if flat.ndim == 1 else np.asarray(forms)

    def trace(self) -> float:
        """``Σ λᵢ + (P − K) λ̃``.

        Examples
        --------
        >>> import numpy as np
        >>> import ihvp
        >>> ihvp.FullRank.of([3.0, 2.0], np.eye(5, 2), tail=1.0).trace()
        8.0
        """
        return float(np.sum(self.values) + self._codimension * self.tail)

    def logdet(self, damping: float = 0.0) -> float:
        """``log det(A + λI)``, for a positive definite ``A + λI``.

        An InvalidOption says which damping would do, where an eigenvalue of it is not positive.

        Examples
        --------
        >>> import numpy as np
        >>> import ihvp
        >>> round(ihvp.LowRank.of([3.0, 2.0], np.eye(5, 2)).logdet(damping=1.0), 6)  # log 12
        2.484907
        """
        check_number("damping", damping, lambda _: True, "a finite number")
        damped, rest = self._damped(damping)
        lowest = min(damped.min(), rest) if self._codimension else damped.min()
        if self.is_singular(damping) or lowest <= 0:
            raise InvalidOption(
                "damping",
                damping,
                f"a number above {damping - lowest:.3e}: with this one the lowest eigenvalue is "
                f"{lowest:.3e}, and the logarithm of the determinant is defined where all are positive",
            )
        tail = self._codimension * np.log(rest) if self._codimension else 0.0
        return float(np.sum(np.log(damped)) + tail)

    def is_singular(self, damping: float) -> bool:
        """Whether an eigenvalue of ``A + λI`` is zero up to rounding."""
        damped, rest = self._damped(damping)
        return bool(np.any(self._is_zero(damping, damped))) or bool(
            self._codimension and self._is_zero(damping, np.asarray(rest))
        )

    def solve_damped(self, v: Vector, damping: float) -> Vector:
        """``(A + λI)⁻¹ v`` of a flat native vector or block; by the pseudo-inverse where that is singular."""

        def inverse(values: NDArray[np.float64]) -> NDArray[np.float64]:
            damped = np.asarray(values + damping)
            zero = self._is_zero(damping, damped)
            return np.divide(1.0, damped, out=np.zeros(damped.shape), where=~zero)

        return self.function(v, inverse)

    def _damped(self, damping: float) -> tuple[NDArray[np.float64], float]:
        return self.values + damping, self.tail + damping

    def _is_zero(self, damping: float, eigenvalues: NDArray[np.float64]) -> NDArray[np.bool_]:
        largest = max(float(np.abs(self.values).max()), abs(self.tail), abs(damping))
        return np.abs(eigenvalues) <= _ZERO * self.space.eps * largest


class LowRank(Spectral):
    r"""The best approximation of its rank to a matrix of which the leading eigenpairs are known.

    .. math:: \tilde H = Q \Lambda Q^\top

    (Nilsen et al., "Efficient computation of Hessian matrices in TensorFlow", 2019, equation 15.) With K = P
    pairs it is the matrix itself. It is singular with fewer, so that a solve needs damping, or a right-hand
    side in the span of Q. Eigenvalues may be negative: solves are exact with any but zeros.

    Parameters
    ----------
    eigenpairs : Eigenpairs
        As :func:`~ihvp.eigsh` finds them. From arrays: :meth:`of`.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> L = ihvp.LowRank(ihvp.eigsh(ihvp.Dense(np.diag([3.0, 2.0, 1.0])), k=2))
    >>> (L @ np.ones(3)).round(6) + 0.0
    array([3., 2., 0.])
    >>> ihvp.solve(L, np.ones(3), damping=1.0).x.round(6)
    array([0.25    , 0.333333, 1.      ])
    """

    def __init__(self, eigenpairs: Eigenpairs) -> None:
        super().__init__(eigenpairs, 0.0)

    @classmethod
    def of(cls, values: Any, vectors: Any) -> LowRank:
        """The same from arrays: eigenvalues ``(K,)`` and orthonormal eigenvectors ``(P, K)``."""
        return cls(Eigenpairs.of(values, vectors))


class FullRank(Spectral):
    r"""A low-rank approximation with one eigenvalue in place of all those that are not known.

    .. math:: \tilde{\tilde H} = Q \Lambda Q^\top + \tilde\lambda\, (I - Q Q^\top)

    (Nilsen et al., "Efficient computation of Hessian matrices in TensorFlow", 2019, equation 16.)

    Parameters
    ----------
    eigenpairs : Eigenpairs
        As :func:`~ihvp.eigsh` finds them. From arrays: :meth:`of`.
    tail : float, optional
        λ̃ > 0; by default the smallest of the known eigenvalues, λ_K.

    Raises
    ------
    InvalidOption
        The tail is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> F = ihvp.FullRank(ihvp.eigsh(ihvp.Dense(np.diag([3.0, 2.0, 1.0])), k=2))
    >>> (F @ np.ones(3)).round(6)
    array([3., 2., 2.])
    """

    def __init__(self, eigenpairs: Eigenpairs, tail: float | None = None) -> None:
        name = "tail"
        if tail is None:
            _checked(eigenpairs)
            name, tail = "tail, by default the smallest of the eigenvalues,", float(np.min(eigenpairs.values))
        expected = "a finite number above 0, to stand for the unknown eigenvalues: pass tail=…"
        check_number(name, tail, lambda number: number > 0, expected)
        super().__init__(eigenpairs, float(tail))

    @classmethod
    def of(cls, values: Any, vectors: Any, tail: float | None = None) -> FullRank:
        """The same from arrays: eigenvalues ``(K,)`` and orthonormal eigenvectors ``(P, K)``."""
        return cls(Eigenpairs.of(values, vectors), tail)


def _checked(eigenpairs: Eigenpairs) -> tuple[NDArray[np.float64], Vector]:
    check_instance(
        "eigenpairs", eigenpairs, Eigenpairs, "the Eigenpairs that ihvp.eigsh finds; of arrays: of(…)"
    )
    values, vectors = eigenpairs.values, eigenpairs.vectors
    shape = shape_of(vectors) or ()
    if not array_api_compat.is_array_api_obj(vectors) or len(shape) != 2 or not 1 <= shape[1] <= shape[0]:
        raise VectorError(f"The eigenvectors are {describe(vectors)}; expected a (P, K) array, 1 ≤ K ≤ P.")
    if values.shape != shape[1:]:
        raise VectorError(
            f"The eigenvalues have shape {values.shape}; expected ({shape[1]},), one for each eigenvector."
        )
    xp = array_api_compat.array_namespace(vectors)
    if not xp.isdtype(vectors.dtype, "real floating"):
        raise VectorError(f"The eigenvectors have dtype {vectors.dtype}; expected a real floating one.")
    if not np.all(np.isfinite(values)):
        raise VectorError("The eigenvalues hold NaN or infinite entries; expected finite ones.")
    deviation = np.abs(algebra.gram(vectors, vectors) - np.eye(shape[1])).max()
    allowed = float(xp.finfo(vectors.dtype).eps) ** 0.5
    if not deviation <= allowed:
        raise VectorError(
            f"The eigenvectors are not orthonormal: QᵀQ differs from the identity by {deviation:.1e}; "
            f"expected at most {allowed:.1e}. Orthonormalise them, or take those that ihvp.eigsh returns."
        )
    return values, vectors

"""Eigenpairs of a symmetric operator, each with its residual."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp.arguments import as_array


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    r"""k pairs with :math:`A q_i \approx \lambda_i q_i`.

    Attributes
    ----------
    values : ndarray (k,)
        The eigenvalues λ in float64, descending: the largest first, the most negative last.
    vectors
        The eigenvectors ``(P, k)`` as columns, orthonormal, in the operator's array type.
    residuals : ndarray (k,)
        ``‖A q − λ q‖``. An eigenvalue of A lies within this distance of λ.
    converged : ndarray (k,) of bool
        Whether the residual of each pair is within the tolerance, and no other eigenvalue belongs in its
        place: :func:`~ihvp.eigsh` says with which confidence.
    matvecs : int
        Products with single vectors, those for the certificate included.
    truncation_error : float or None
        Of a decomposition of streamed gradients: how far at most one pass over the data, which products then
        improve, left each value below the eigenvalue.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> pairs = ihvp.eigsh(ihvp.Dense(np.diag([5.0, 3.0, 1.0])), k=2)
    >>> pairs.values.round(6), pairs.vectors.shape, bool(pairs.residuals.max() < 1e-9)
    (array([5., 3.]), (3, 2), True)
    """

    values: NDArray[np.float64]
    vectors: Any = field(repr=False)
    residuals: NDArray[np.float64] = field(repr=False)
    converged: NDArray[np.bool_]
    matvecs: int
    truncation_error: float | None = None

    @classmethod
    def of(cls, values: Any, vectors: Any) -> Eigenpairs:
        """Pairs that come from elsewhere, ``(K,)`` and ``(P, K)``: of unknown residual, not certified."""
        values = as_array("values", values).astype(np.float64)
        unknown = np.full(values.shape, np.nan)
        return cls(values, vectors, unknown, np.zeros(values.shape, dtype=bool), matvecs=0)

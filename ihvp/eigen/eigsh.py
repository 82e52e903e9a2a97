"""A few eigenpairs of a curvature matrix: one call, whatever the method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np

from ihvp import algebra
from ihvp.arguments import check_choice, check_flag, check_function, check_integer, check_number, check_seed
from ihvp.backend import Vector
from ihvp.eigen.approximation import Products, certified
from ihvp.eigen.failure import failure
from ihvp.eigen.lanczos import Search
from ihvp.eigen.opg import opg_eigenpairs
from ihvp.eigen.search import searched
from ihvp.eigen.wanted import CHOICES, Wanted, Which
from ihvp.eigenpairs import Eigenpairs
from ihvp.errors import InvalidOption, VectorError
from ihvp.operators.base import LinearOperator, check_operator
from ihvp.operators.opg import OPG
from ihvp.operators.symmetry import check_symmetric
from ihvp.progress import Step
from ihvp.space import VectorSpace

# Small problems have as many vectors in the basis as make this many numbers, up to a limit.
_SMALL, _MOST_OF_SMALL = 1 << 18, 100


@np.errstate(all="ignore")
def eigsh(
    operator: LinearOperator,
    k: int = 10,
    which: Which = "LA",
    *,
    tol: float | None = None,
    ncv: int | None = None,
    max_restarts: int = 1000,
    confidence: float | None = 0.999,
    seed: int = 0,
    v0: Any = None,
    check: bool = False,
    on_failure: Literal["raise", "return"] = "raise",
    callback: Callable[[Step], object] | None = None,
    progress: bool | None = None,
) -> Eigenpairs:
    r"""The k largest or smallest eigenvalues of a symmetric operator, and their eigenvectors.

    A pair that is called converged is the one of its place: the j-th largest value is the j-th largest
    eigenvalue, multiple ones counted as often as they occur, to within ``tol · max |θ|``. Eigenvalues that
    are closer to each other than this are not told apart.

    By the Lanczos method with thick restarts and full reorthogonalisation, on the operator's device (Wu and
    Simon, SIAM Journal on Matrix Analysis and Applications 22, 2000), and a probe for what it missed (van
    Dorsselaer, Hochstenbach and van der Vorst, same volume). Where the basis would span the whole space, as
    for k close to P, by P products and a dense decomposition instead, and for P ≤ 4,096 also where P/2
    products have not been enough. For the largest of an :class:`~ihvp.OPG` by a streaming singular value
    decomposition of the per-example gradients, unless ``ncv`` or ``v0`` ask for Lanczos; the probe then
    follows where the decomposition had to leave something out.

    Parameters
    ----------
    operator : LinearOperator
        A.
    k : int
        The number of eigenpairs, from 1 to P.
    which : {"LA", "SA", "LM", "BE"}
        The largest, the smallest (algebraically, so that negative ones come first), the largest in
        magnitude, or half from each end, with one more from the upper end where k is odd.
    tol : float, optional
        A pair has converged when ``‖A q − λ q‖ ≤ tol · max |θ|``, where the maximum over all Ritz values
        stands for ``‖A‖``, and no eigenvalue belongs in its place that differs by more than that. (ARPACK
        takes each pair's own |θ|, which for small eigenvalues asks for less than rounding errors.) The error
        of an eigenvalue is about the square of its residual. By default ε^(2/3) of the dtype (3.7e-11 in
        float64, 2.4e-5 in float32; 4ε in half precision), or what the error of the operator's products
        allows.
    ncv : int, optional
        Vectors in the basis, from k + 2 to P. By default 2k + 20; up to 100 where P is small.
    max_restarts : int
        How often the basis may be filled and cut back; each probe begins so.
    confidence : float or None
        The probability, over the random vectors, that no wanted eigenvalue is missed, below 1. One start
        vector finds each *multiple* eigenvalue once, in Lanczos' method as in ARPACK, and may pass over one
        in a cluster. Therefore, after the pairs have converged, the iteration goes on from a random vector
        until nothing wanted can be left. That takes 10 to 25 products for a network's largest eigenvalues,
        and one to three times those before where the spectrum is dense at its end. For each copy that is
        found the iteration begins anew. None leaves the probe out, unless the basis has spanned an invariant
        subspace: then ``converged`` is about residuals alone.
    seed : int
        Of the start vector and other random ones.
    v0 : optional
        The start vector, in any form that the operator multiplies.
    check : bool
        Whether to compare ``uᵀ(Av)`` with ``vᵀ(Au)`` for random u and v first, which takes two products.
    on_failure : {"raise", "return"}
        Whether pairs that miss the tolerance are an error.
    callback : callable, optional
        Called with a :class:`~ihvp.progress.Step` after each product: its number, the largest residual of the
        wanted pairs relative to the largest Ritz value, and how many have not converged.
    progress : bool, optional
        Shows a progress bar; by default in a terminal, after a second.

    Returns
    -------
    Eigenpairs
        In descending order for every ``which``. The residuals follow from orthogonality, which is kept up to
        rounding, and a fresh product with a random combination of the vectors confirms them; where it does
        not, each pair's residual is recomputed by a fresh product of its own.

    Raises
    ------
    EigenpairsNotConverged
        Residuals are above the tolerance, or it is not certain that no eigenvalue is missed;
        ``.eigenpairs`` holds what was computed.
    InvalidOption, VectorError, NotSymmetric, NonFinite
    TooLarge
        The basis does not fit in memory.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> pairs = ihvp.eigsh(ihvp.Dense(np.diag(np.arange(100.0))), k=3)
    >>> pairs.values.round(6), pairs.converged
    (array([99., 98., 97.]), array([ True,  True,  True]))
    """
    check_operator(operator)
    check_flag("check", check)
    check_function("callback", callback, "a function of an ihvp.progress.Step, or None", takes=1)
    space = operator.space
    capacity = _checked(space, k, which, tol, ncv, max_restarts, confidence, seed, on_failure)
    start = None if v0 is None else _checked_start(space, v0)
    operator.verify()
    if check:
        check_symmetric(operator)
    product = Products(operator)
    limit = _default_tolerance(product) if tol is None else float(tol)
    known = None
    # The rows of J that other processes have reach this one through products only.
    rows_are_here = isinstance(operator, OPG) and operator.objective.processes.count == 1
    if rows_are_here and which in ("LA", "LM") and ncv is None and v0 is None:
        known = opg_eigenpairs(cast(OPG, operator), k, tol=limit)
        product.count = known.matvecs
    if known is not None and (confidence is None or not np.all(known.converged) or _is_exact(known, limit)):
        pairs, size, complete = known, float(np.abs(known.values).max()), True
    else:
        search = Search(
            capacity=capacity,
            tol=limit,
            missed=None if confidence is None else 1 - confidence,
            noisy=tol is None,
            max_restarts=max_restarts,
            seed=seed,
            start=start,
            known=known,
        )
        found = searched(product, Wanted(which, k), search, callback, progress)
        size, complete = found.size, found.complete
        pairs = certified(product, found, limit, seed=seed, noisy=search.noisy)
        if known is not None:
            pairs = replace(pairs, truncation_error=known.truncation_error)
    if on_failure == "raise" and not np.all(pairs.converged):
        raise failure(
            operator,
            pairs,
            tol=limit,
            size=size,
            max_restarts=max_restarts,
            complete=complete,
            confidence=confidence,
        )
    return pairs


def _is_exact(pairs: Eigenpairs, tol: float) -> bool:
    """Whether so little of a matrix was left out that no pair can be missed."""
    assert pairs.truncation_error is not None
    return pairs.truncation_error <= tol * float(np.abs(pairs.values).max())


def _checked(
    space: VectorSpace,
    k: int,
    which: Any,
    tol: Any,
    ncv: Any,
    max_restarts: Any,
    confidence: Any,
    seed: Any,
    on_failure: Any,
) -> int:
    """The size of the basis."""
    check_integer("k", k, 1, space.size, f"an integer from 1 to P = {space.size}")
    k = int(k)  # small integers of numpy overflow
    if not isinstance(which, str) or which not in CHOICES:
        expected = "'LA' (largest), 'SA' (smallest), 'LM' (largest in magnitude) or 'BE' (from both ends)"
        raise InvalidOption("which", which, expected)
    if tol is not None:
        expected = "a number between 0 and 1, or None for what the dtype allows"
        check_number("tol", tol, _is_part, expected)
    least = min(k + 2, space.size)
    expected = f"an integer from {least} (k + 2) to P = {space.size}"
    check_integer("ncv", ncv, least, space.size, expected, none=True)
    check_integer("max_restarts", max_restarts, 0)
    if confidence is not None:
        check_number("confidence", confidence, _is_part, "a number between 0 and 1, or None")
    check_seed(seed)
    check_choice("on_failure", on_failure, ("raise", "return"))
    if ncv is not None:
        return int(ncv)
    # With more vectors there are fewer products, where a spectrum is dense at its end.
    roomy = min(_MOST_OF_SMALL, _SMALL // space.size, space.size // 2)
    return min(max(2 * k + 20, roomy), space.size)


def _default_tolerance(product: Products) -> float:
    # In half precision at least the vector and the result are rounded, by up to ε/2, for the pair and for the
    # fresh product.
    return float(max(product.space.eps ** (2 / 3), 4 * product.space.product_eps))


def _checked_start(space: VectorSpace, v0: Any) -> Vector:
    start, _ = space.enter(v0)
    if start.ndim != 1:
        raise VectorError(f"v0 has shape {start.shape}; expected ({space.size},): one vector.")
    size = float(algebra.norms(start))
    if not 0 < size < np.inf:
        raise VectorError(f"v0 has size {size}; expected a finite vector that is not 0.")
    return start


def _is_part(number: float) -> bool:
    return 0 < number < 1

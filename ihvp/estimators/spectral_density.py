"""The spectrum of a matrix as a density, by stochastic Lanczos quadrature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh_tridiagonal

from ihvp import algebra
from ihvp.arguments import as_array, check_integer, check_number, check_seed, naming
from ihvp.backend import Vector
from ihvp.errors import FunctionFailed, InvalidOption
from ihvp.estimators.probes import Estimate, checked_count, gaussians, products
from ihvp.memory import require_memory
from ihvp.operators.base import LinearOperator, check_operator


@dataclass(frozen=True)
class SpectralDensity:
    r"""The density of eigenvalues :math:`\phi(t) = \frac1P \sum_i \delta(t - \lambda_i)`, as probes see it.

    Attributes
    ----------
    nodes, weights : ndarray (num_samples, steps)
        Ritz values and their weights, a row for each probe. A row's weights sum to 1; those of a probe whose
        Krylov space has fewer dimensions are filled up with 0.
    matvecs : int
        Products with single vectors.

    Examples
    --------
    Half of the eigenvalues are 1, the other half 5:

    >>> import numpy as np
    >>> import ihvp
    >>> A = ihvp.Dense(np.diag(np.repeat([1.0, 5.0], 500)))
    >>> density = ihvp.spectral_density(A, steps=2)
    >>> density.cumulative([0.0, 3.0, 6.0]).round(2).tolist()
    [0.0, 0.5, 1.0]
    >>> estimate = density.expectation(np.log)
    >>> bool(abs(estimate.value - np.log(5) / 2) < 3 * estimate.standard_error)
    True
    """

    nodes: NDArray[np.float64]
    weights: NDArray[np.float64]
    matvecs: int

    def __repr__(self) -> str:
        nodes = self._used(self.nodes)
        samples, steps = self.nodes.shape
        return (
            f"SpectralDensity({nodes.size:,} nodes from {nodes.min():.3g} to {nodes.max():.3g}, "
            f"num_samples={samples}, steps={steps}, matvecs={self.matvecs})"
        )

    def expectation(self, function: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Estimate:
        r"""An estimate of :math:`\frac1P \operatorname{tr} f(A)`, the mean of f over the eigenvalues.

        Exact in expectation for polynomials of degree below 2 ``steps``. Times P, ``numpy.log`` gives the
        log-determinant of a definite matrix.
        """
        if not callable(function):
            raise InvalidOption("function", function, "a function of an array of eigenvalues")
        # What has no weight must not reach functions that are not defined everywhere.
        used = self.weights > 0
        terms = np.zeros(self.nodes.shape)
        with naming(FunctionFailed, "function(eigenvalues)"):
            values = as_array("what function returned", function(self.nodes[used]))
        if values.shape not in ((), (np.count_nonzero(used),)):
            raise InvalidOption("function", function, "a function that returns a number for each eigenvalue")
        terms[used] = self.weights[used] * values
        samples = terms.sum(axis=1)
        count = samples.size
        error = float(samples.std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan")
        return Estimate(float(samples.mean()), error, self.matvecs)

    def density(self, grid: ArrayLike, width: float | None = None) -> NDArray[np.float64]:
        """φ on a grid, each node widened to a Gaussian.

        Parameters
        ----------
        grid : array_like
            Where to evaluate.
        width : float, optional
            The Gaussian's standard deviation; by default a hundredth of the range of the nodes.
        """
        width = self._width(width)
        points = as_array("grid", grid).astype(np.float64)
        with np.errstate(all="ignore"):  # far from a node there is nothing
            offsets = (points[..., None] - self._used(self.nodes)) / width
            kernel = np.exp(-(offsets**2) / 2) / (np.sqrt(2 * np.pi) * width)
        return np.asarray(kernel @ self._used(self.weights) / len(self.nodes))

    def cumulative(self, grid: ArrayLike, width: float = 0.0) -> NDArray[np.float64]:
        """The fraction of eigenvalues up to each point of a grid, in steps, or smooth where ``width > 0``."""
        from scipy.special import ndtr  # a tenth of the time that importing ihvp may take

        check_number("width", width, lambda number: number >= 0, "a finite number ≥ 0")
        offsets = as_array("grid", grid).astype(np.float64)[..., None] - self._used(self.nodes)
        with np.errstate(over="ignore"):
            below = (offsets >= 0).astype(np.float64) if width == 0 else ndtr(offsets / width)
        return np.asarray(below @ self._used(self.weights) / len(self.nodes))

    def _used(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values[self.weights > 0]

    def _width(self, width: float | None) -> float:
        if width is None:
            spread = float(np.ptp(self._used(self.nodes)))
            return spread / 100 or 1e-2 * float(np.abs(self.nodes).max()) or 1e-2
        check_number("width", width, lambda number: number > 0, "a finite number > 0")
        return width


@np.errstate(all="ignore")
def spectral_density(
    operator: LinearOperator, *, num_samples: int | None = None, steps: int | None = None, seed: int = 0
) -> SpectralDensity:
    r"""The eigenvalue density of A by stochastic Lanczos quadrature.

    The Lanczos process from a random vector gives the nodes and weights of Gauss' quadrature for the density
    that this vector sees; probes are averaged (Ubaru, Chen and Saad, "Fast estimation of tr(f(A)) via
    stochastic Lanczos quadrature", SIAM Journal on Matrix Analysis and Applications 38, 2017; for neural
    networks Ghorbani, Krishnan and Xiao, ICML 2019). All vectors are reorthogonalised, without which copies
    of outlying eigenvalues would appear. The probes share block products.

    Parameters
    ----------
    operator : LinearOperator
        A.
    num_samples : int, optional
        The random vectors, by default 10 or P, whichever is less.
    steps : int, optional
        Lanczos steps, from 1 to P, by default 80 or P, whichever is less; ``num_samples * steps`` products
        are taken, and as many vectors held.
    seed : int
        Of the random vectors.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> density = ihvp.spectral_density(ihvp.Dense(np.diag([1.0, 1.0, 5.0, 5.0])), steps=2, num_samples=2)
    >>> np.round(density.nodes, 6)
    array([[1., 5.],
           [1., 5.]])
    """
    check_operator(operator)
    check_seed(seed)
    size = operator.space.size
    count = min(10, size) if num_samples is None else num_samples
    check_integer("num_samples", count, 1)
    count, length = int(count), checked_count("steps", steps, 80, size)
    operator.verify()
    space, numbers = operator.space, count * (length + 1) * size
    require_memory(space, numbers, space.itemsize, "The Lanczos vectors", "Lower num_samples or steps.")
    start = gaussians(operator.space, np.random.default_rng(seed), count)
    diagonals, off_diagonals, basis = lanczos(operator, start, length)
    nodes, weights = np.zeros((count, length)), np.zeros((count, length))
    for probe in range(count):
        # A zero beside the diagonal ends a Krylov space.
        dimension = krylov_dimension(off_diagonals[probe])
        values, vectors = eigh_tridiagonal(
            diagonals[probe, :dimension], off_diagonals[probe, : dimension - 1]
        )
        nodes[probe, :dimension], weights[probe, :dimension] = values, vectors[0] ** 2
        nodes[probe, dimension:] = values[-1]
    return SpectralDensity(nodes, weights, count * len(basis))


def krylov_dimension(off_diagonal: NDArray[np.float64]) -> int:
    """The steps until a zero beside the diagonal ends the Krylov space; all of them where none does."""
    ends = np.flatnonzero(off_diagonal == 0)
    return int(ends[0]) + 1 if ends.size else off_diagonal.size


def lanczos(
    operator: LinearOperator, start: Vector, steps: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[Vector]]:
    """α and β of each column, ``(k, steps)``, with β = 0 where a Krylov space ends, and the basis vectors.

    The last β couples the basis to the vector that would be next.
    """
    count, eps = start.shape[1], operator.space.eps
    diagonals, off_diagonals = np.zeros((count, steps)), np.zeros((count, steps))
    largest = np.zeros(count)
    current = start / algebra.coefficients(algebra.norms(start), start)
    basis: list[Vector] = []
    for step in range(steps):
        following = products(operator, current)
        largest = np.maximum(largest, algebra.norms(following))
        basis.append(current)
        diagonals[:, step] = algebra.dots(current, following)
        # Twice is enough (Parlett, "The Symmetric Eigenvalue Problem", section 6.9).
        for _ in range(2):
            for vector in basis:
                overlap = algebra.dots(vector, following)
                following = algebra.axpy(following, -algebra.coefficients(overlap, following), vector)
        beta = algebra.norms(following)
        ended = beta <= np.maximum(np.sqrt(steps) * 10 * eps * largest, operator.space.smallest)
        beta[ended] = 0.0
        off_diagonals[:, step] = beta
        if step == steps - 1 or np.all(ended):
            break
        scales = np.divide(1.0, beta, out=np.zeros(count), where=~ended)
        current = algebra.scale(following, algebra.coefficients(scales, following))
    return diagonals, off_diagonals, basis

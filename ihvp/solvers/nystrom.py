"""Nyström preconditioning: the part of a matrix that a few products have shown, inverted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.arguments import check_choice, check_integer, check_seed
from ihvp.backend import Vector
from ihvp.errors import InvalidOption, NonFinite
from ihvp.memory import require_memory
from ihvp.operators.base import Shifted
from ihvp.solvers.base import CountedOperator
from ihvp.space import VectorSpace

TestMatrix = Literal["residuals", "gaussian"]

# Directions, their products, the basis of these, and what the factorisation works on: vectors for each rank.
_VECTORS = 4
# Where the caller names no rank, the sketch stays within these.
_DEFAULT_RANK, _DEFAULT_BYTES = 1000, 1 << 30
# Columns of a Gaussian test matrix that are multiplied at once, and the rank that the doubling starts from.
_COLUMNS, _FIRST_RANK = 64, 32
# A rank whose smallest eigenvalue is below this many dampings leaves a condition number of about as much.
_ENOUGH = 10.0
# Multiples of machine epsilon: for Gram matrices, and for what the preconditioner may scale down.
_DISTINCT, _FLOOR = 1e3, 1e2


@dataclass(frozen=True, kw_only=True)
class Nystrom:
    r"""The Nyström preconditioner of :class:`~ihvp.CG`, with a rank that adapts itself.

    From a test matrix :math:`\Omega` and its products with :math:`B = A + \lambda I` it makes Nyström's
    approximation :math:`\hat B = B\Omega (\Omega^T B \Omega)^{-1} (B\Omega)^T = U \hat\Lambda U^T`, and from
    that

    .. math:: P^{-1} = \hat\lambda_\ell\, U \hat\Lambda^{-1} U^T + (I - U U^T),

    under which the large eigenvalues that :math:`\hat B` has caught become one (Frangella, Tropp and Udell,
    "Randomized Nyström preconditioning", SIAM Journal on Matrix Analysis and Applications 44, 2023, algorithm
    2.1; B in place of A, so that λ may be 0, or A indefinite and B not). The test matrix is kept in the form
    :math:`\Omega^T B \Omega = I`, which no later column changes: a sketch grows without losing a product.

    With ``test_matrix="residuals"`` each product of the set-up is also a step of the solve: the residuals,
    made conjugate to all earlier directions, are the next columns. Until the rank is reached this is CG with
    full reorthogonalisation, over the space of all right-hand sides together (Erhel and Guyomarc'h, "An
    augmented conjugate gradient method for solving consecutive symmetric positive definite linear systems",
    SIAM Journal on Matrix Analysis and Applications 21, 2000); CG with the preconditioner goes on from there.
    It needs fewer products than any sketch made beforehand. Solves by one :func:`~ihvp.inverse` share and
    extend the sketch, so that later ones are cheaper.

    With ``test_matrix="gaussian"`` the sketch is made before the first solve, by products with wide blocks,
    which some devices do in a fraction of the time of single ones. The rank is doubled until
    :math:`\hat\lambda_\ell - \lambda \le 10 \lambda` (section 5.4 there) or ``rank`` is reached.

    Beside what CG holds, this takes up to four vectors for each rank, and O(P rank) operations a product.

    Parameters
    ----------
    rank : int, optional
        The most columns of the test matrix. By default as many as 1 GiB holds, at most 1,000.
    test_matrix : {"residuals", "gaussian"}
    seed : int
        Of the Gaussian test matrix.

    Raises
    ------
    InvalidOption
        An option is out of range; when the operator is known, ``rank`` above P.
    TooLarge
        ``rank`` was given, and does not fit in memory.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> A = ihvp.Dense(np.diag(np.geomspace(1, 1e-6, 50)))
    >>> v = np.ones(50)
    >>> plain = ihvp.solve(A, v, damping=1e-6, solver=ihvp.CG())
    >>> better = ihvp.solve(A, v, damping=1e-6, solver=ihvp.CG(preconditioner=ihvp.Nystrom(rank=40)))
    >>> better.matvecs < plain.matvecs / 3
    True
    """

    rank: int | None = None
    test_matrix: TestMatrix = "residuals"
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("rank", self.rank, 1, expected="a positive integer, or None", none=True)
        check_choice("test_matrix", self.test_matrix, get_args(TestMatrix))
        check_seed(self.seed)

    def sketch(self, system: Shifted) -> Sketch:
        """The sketch of ``A + λI`` as far as no right-hand side is needed for it."""
        sketch = Sketch(self.most(system.space), grows=self.test_matrix == "residuals")
        if self.test_matrix == "gaussian":
            self._fill(sketch, system)
        return sketch

    def most(self, space: VectorSpace) -> int:
        """The rank not to exceed.

        Raises
        ------
        InvalidOption, TooLarge
            The rank that was asked for is above P, or does not fit in memory.
        """
        if self.rank is None:
            held = _DEFAULT_BYTES // (_VECTORS * space.size * space.itemsize)
            return max(1, min(space.size, _DEFAULT_RANK, held))
        if self.rank > space.size:
            raise InvalidOption("rank", self.rank, f"at most P = {space.size}, the number of parameters")
        require_memory(
            space,
            _VECTORS * int(self.rank) * space.size,
            space.itemsize,
            f"A sketch of rank {self.rank:,} for P = {space.size:,} parameters",
            "Lower the rank.",
        )
        return int(self.rank)

    def _fill(self, sketch: Sketch, system: Shifted) -> None:
        generator, operator = np.random.default_rng(self.seed), CountedOperator(system)
        space, goal, drawn = system.space, min(_FIRST_RANK, sketch.most), 0
        while drawn < sketch.most:
            count = min(_COLUMNS, goal - drawn)
            sketch.extend(operator, space.asarray(generator.standard_normal((space.size, count))))
            drawn += count
            if drawn == goal:
                if sketch.rank == 0 or sketch.lowest() <= (1 + _ENOUGH) * system.shift:
                    break
                goal = min(2 * goal, sketch.most)
        sketch.owed = operator.products


class Sketch:
    """Directions D and products F = B D with ``DᵀF = I``: Nyström's approximation ``F Fᵀ`` of B.

    Called with a residual, it applies the preconditioner.

    Parameters
    ----------
    most : int
        The rank not to exceed.
    grows : bool
        Whether the residuals of a solve extend it.

    Attributes
    ----------
    rank : int
        The columns of D.
    pairs : list of (Vector, Vector)
        D and F in blocks of columns.
    highest : float
        The largest Rayleigh quotient of B among the directions.
    owed : int
        Products that no solution has accounted for yet.
    """

    def __init__(self, most: int, *, grows: bool) -> None:
        self.most, self.grows = most, grows
        self.rank = self.owed = 0
        self.pairs: list[tuple[Vector, Vector]] = []
        self.highest = 0.0
        self._factors: tuple[NDArray[np.float64], Vector, NDArray[np.float64]] | None = None

    def extend(self, operator: CountedOperator, block: Vector) -> tuple[Vector, Vector, bool]:
        """Add the span of ``block``: the new directions, their products, and whether B is positive on it.

        Where it is not, the directions of positive curvature are added all the same.
        """
        eps = operator.operator.space.eps
        block = _independent(block, eps)[:, : self.most - self.rank]
        # Once is not enough where a column lies almost in the span of the earlier ones.
        for _ in range(2):
            for directions, products in self.pairs:
                block = algebra.add_product(block, directions, -algebra.gram(products, block))
        sizes = algebra.norms(block)
        block = algebra.scale(block, algebra.coefficients(1 / np.where(sizes > 0, sizes, 1.0), block))
        product = operator.apply(block)
        if not algebra.all_finite(product):
            raise NonFinite("A product with the operator")
        curvatures, basis = np.linalg.eigh(_symmetric_gram(block, product))
        self.highest = max(self.highest, curvatures[-1])
        # As in CG: curvature that the dtype cannot tell from 0.
        positive = curvatures > eps**1.5 * self.highest
        block, product = _mixed(block, product, basis[:, positive] / np.sqrt(curvatures[positive]))
        if block.shape[1]:
            # The second time repairs what rounding left of the first, or drops what it cannot.
            curvatures, basis = np.linalg.eigh(_symmetric_gram(block, product))
            sound = curvatures > 0.5
            block, product = _mixed(block, product, basis[:, sound] / np.sqrt(curvatures[sound]))
        if block.shape[1]:
            self._append(block, product)
        return block, product, bool(np.all(positive))

    def lowest(self) -> float:
        """The smallest eigenvalue of ``F Fᵀ`` on its range."""
        return float(self._factorised()[0][-1])

    def __call__(self, r: Vector) -> Vector:
        """``P⁻¹ r`` for a vector or a block."""
        if not self.rank:
            return algebra.copy(r)
        _, basis, core = self._factorised()
        block = algebra.copy(r[:, None] if r.ndim == 1 else r)
        block = algebra.add_product(block, basis, core @ algebra.gram(basis, block))
        return block[:, 0] if r.ndim == 1 else block

    def _append(self, directions: Vector, products: Vector) -> None:
        self.rank += directions.shape[1]
        self._factors = None
        # Blocks of about the same width are joined: few of them, and little copying.
        while self.pairs and self.pairs[-1][0].shape[1] <= directions.shape[1]:
            before = self.pairs.pop()
            directions = algebra.concatenate([before[0], directions])
            products = algebra.concatenate([before[1], products])
        self.pairs.append((directions, products))

    def _factorised(self) -> tuple[NDArray[np.float64], Vector, NDArray[np.float64]]:
        """The eigenvalues of ``F Fᵀ = Q W diag(λ̂) Wᵀ Qᵀ``, Q, and ``W (λ̂_ℓ / diag(λ̂) − I) Wᵀ``."""
        if self._factors is None:
            products = algebra.concatenate([products for _, products in self.pairs])
            xp = array_api_compat.array_namespace(products)
            basis, triangle = xp.linalg.qr(products)
            left, singular, _ = np.linalg.svd(np.asarray(algebra.to_numpy(triangle), dtype=np.float64))
            # Below the floor, rᵀ P⁻¹ r would be lost in rounding, and its sign with it.
            floor = _FLOOR * float(xp.finfo(products.dtype).eps)
            ratios = np.clip((singular[-1] / singular) ** 2, floor, 1.0)
            core = (left * (ratios - 1)) @ left.T
            self._factors = singular**2, basis, core
        return self._factors


def _independent(block: Vector, eps: float) -> Vector:
    """Orthonormal combinations of the columns, leading ones first; a repeated column counts once."""
    block = block / algebra.coefficients(algebra.norms(block), block)
    values, basis = np.linalg.eigh(_symmetric_gram(block, block))
    values, basis = values[::-1], basis[:, ::-1]
    distinct = values > min(_DISTINCT * eps, 0.1) * values[0]
    return algebra.multiply(block, basis[:, distinct] / np.sqrt(values[distinct]))


def _symmetric_gram(left: Vector, right: Vector) -> NDArray[np.float64]:
    product = algebra.gram(left, right)
    return np.asarray((product + product.T) / 2)


def _mixed(block: Vector, product: Vector, mixing: NDArray[np.float64]) -> tuple[Vector, Vector]:
    return algebra.multiply(block, mixing), algebra.multiply(product, mixing)

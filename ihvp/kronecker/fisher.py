"""The Monte-Carlo Fisher matrix."""

from __future__ import annotations

from collections.abc import Callable

from ihvp import algebra
from ihvp.arguments import check_instance, check_integer
from ihvp.backend import Batch, Vector
from ihvp.data import count_examples
from ihvp.kronecker.coverage import cotangent_rows, opened
from ihvp.kronecker.estimate import require_layers
from ihvp.kronecker.outputs import cotangents
from ihvp.objective import Objective
from ihvp.operators.curvature import CurvatureOperator


class Fisher(CurvatureOperator):
    r"""The Gauss–Newton matrix with a random root of the loss's curvature in the outputs.

    .. math:: F = \frac1W \sum_n \frac{w_n}{M} \sum_{m=1}^{M} J_n^\top c_{nm} c_{nm}^\top J_n, \qquad
        E\, c\, c^\top = \nabla^2_f \ell_n

    For cross-entropy :math:`c = e_y - p` with a label y drawn from the model's own probabilities p, so that
    :math:`J^\top c` is the gradient for a label that the model makes up (Martens, "New insights and
    perspectives on the natural gradient method", JMLR 21, 2020, section 5); for other losses a square root
    times random signs. A product costs M gradients of every example, however many outputs there are.

    Parameters
    ----------
    objective : Objective
        Made with ``predict=``.
    num_samples : int
        M.
    seed : int
        Products are those of one fixed matrix: what is drawn depends on the seed and on a batch's outputs.

    Raises
    ------
    InvalidOption
        The objective has no ``predict``, or the loss is not convex in the outputs.
    MissingCapability
        The backend cannot open models.

    Examples
    --------
    >>> import ihvp
    >>> def fisher(model, data, predict, loss):
    ...     return ihvp.Fisher(ihvp.Objective(loss, model, data, predict=predict), num_samples=4)
    """

    def __init__(self, objective: Objective, num_samples: int = 1, seed: int = 0) -> None:
        check_instance("objective", objective, Objective, "an ihvp.Objective")
        check_integer("num_samples", num_samples, 1)
        check_integer("seed", seed, 0)
        super().__init__(objective)
        _, self._predict, self._loss = require_layers(objective)
        self.num_samples, self.seed = num_samples, seed

    def batch_product(self, batch: Batch, v: Vector) -> Vector:
        return self._sum(batch, lambda rows: rows.T @ (rows @ v))

    def to_dense(self) -> Vector:
        return self._dense_mean(lambda batch: self._sum(batch, lambda rows: rows.T @ rows))

    def _sum(self, batch: Batch, term: Callable[[Vector], Vector]) -> Vector:
        objective = self.objective
        objective.require_additive(batch)
        weights = objective.weighting.of(batch, count_examples(batch))
        model = opened(objective, self._predict, batch)
        relative, _ = objective.relative_weights(weights)
        total: Vector = None
        eps = objective.space.product_eps
        for vectors in cotangents(model, self._loss, relative, eps, "mc", self.num_samples, self.seed):
            for rows in cotangent_rows(objective, self._predict, batch, model, vectors):
                part = term(rows)
                total = part if total is None else algebra.axpy(total, 1.0, part)
        return total

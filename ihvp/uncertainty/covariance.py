"""The covariance of an estimate, as an operator."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ihvp import algebra
from ihvp.arguments import check_choice, check_flag, check_instance, check_number
from ihvp.backend import Params, Vector
from ihvp.errors import InvalidOption, SolverError
from ihvp.estimators import Estimate, diagonal
from ihvp.influence.caller import level_outside
from ihvp.influence.optimum import NotAtOptimum
from ihvp.objective import Objective
from ihvp.operators import OPG, Hessian, LinearOperator
from ihvp.solvers import Direct, Solver, inverse
from ihvp.solvers.solve import Inverse
from ihvp.uncertainty.delta_method import gradients_of
from ihvp.uncertainty.outer_products import ClusteredOuterProducts, OuterProducts
from ihvp.uncertainty.undefined import found_undefined
from ihvp.uncertainty.unit_diagonal import UnitDiagonal

Kind: TypeAlias = Literal["hessian", "opg", "sandwich"]

# Up to so many parameters the matrix itself is formed and factorised.
_DENSE = 1000
# What a factor has solved is as good as products and condition allow, whatever is asked for. A stricter
# certificate would refuse regressors that are nearly collinear.
_RTOL = 1e-5
# So many standard errors away, an optimum is another one.
_AWAY = 0.1


def covariance(
    objective: Objective,
    kind: Kind = "hessian",
    *,
    dispersion: float = 1.0,
    clusters: ArrayLike | None = None,
    correction: bool = False,
    frequency_weights: bool = False,
    solver: Solver | Literal["auto"] | None = None,
) -> Covariance:
    r"""The covariance matrix of parameters that minimise a mean negative log-likelihood, as an operator.

    With H the Hessian of the objective, W the sum of the weights of its N examples (N where each weighs 1),
    φ the dispersion and :math:`s_n = w_n \nabla C_n`:

    .. math::

        \Sigma_\text{hessian} = \frac{\varphi}{W} H^{-1}, \qquad
        \Sigma_\text{opg} = \varphi^2 \Big(\sum_n s_n s_n^\top\Big)^{-1}, \qquad
        \Sigma_\text{sandwich} = \frac{1}{W^2}\, H^{-1} \Big(\sum_n s_n s_n^\top\Big) H^{-1}

    The first two hold where the model is right. The sandwich holds for any loss whose examples are
    independent (Huber 1967; White, "Maximum likelihood estimation of misspecified models", Econometrica 50,
    1982); for regression it is known as HC0, robust to heteroscedasticity.

    Parameters
    ----------
    objective : Objective
        The mean negative log-likelihood, at its optimum. Without ``data``, W = 1: then the loss has to be the
        whole negative log-likelihood.
    kind : {"hessian", "opg", "sandwich"}
    dispersion : float
        φ, where the loss leaves it out: the log-likelihood is ``−W C / φ``. For the half squared error it is
        the variance of the errors; for Gamma regression with the loss ``log μ + y / μ`` the squared
        coefficient of variation. It cancels in the sandwich.
    clusters : array_like (N,), optional
        For the sandwich: labels of any kind, equal for examples that may depend on each other. Their
        :math:`s_n` are summed first. Examples count in the order of the data.
    correction : bool
        Whether the sandwich is multiplied by ``N / (N − P)`` (HC1), and with K clusters by
        ``K / (K − 1) · (N − 1) / (N − P)``.
    frequency_weights : bool
        Whether an example of weight w stands for w equal ones. Otherwise it is one draw, whose loss counts
        for w. Both come to the same with equal weights, with clusters, and for ``"hessian"``.
    solver : Solver or "auto", optional
        By default :class:`~ihvp.Direct` for up to 1,000 parameters, and :class:`~ihvp.CG` beyond.

    Returns
    -------
    Covariance

    Raises
    ------
    UndefinedCovariance
        The matrix to be inverted is singular, or the Hessian has negative curvature. It names the parameters
        that are not determined. Found at the first product that shows it.
    InvalidOption
        Labels that do not fit the data, one cluster, or N ≤ P for a correction.

    Warns
    -----
    NotAtOptimum
        The optimum is more than a tenth of a standard error away.

    Examples
    --------
    The mean of four numbers, whose errors have the variance 5/3:

    >>> import numpy as np
    >>> import ihvp
    >>> y = np.array([[1.0], [2.0], [3.0], [4.0]])
    >>> objective = ihvp.Objective(
    ...     params=np.array([2.5]), data=y, grad=lambda mean, y: mean - y.mean(axis=0)
    ... )
    >>> sigma = ihvp.covariance(objective, dispersion=5 / 3)
    >>> sigma.to_dense().round(6)  # 5/3 / 4
    array([[0.416667]])
    >>> ihvp.covariance(objective, "sandwich", correction=True).to_dense().round(6)
    array([[0.416667]])
    """
    check_instance("objective", objective, Objective, "an ihvp.Objective")
    check_choice("kind", kind, get_args(Kind))
    check_number("dispersion", dispersion, lambda number: number > 0, "a finite number > 0")
    check_flag("correction", correction)
    check_flag("frequency_weights", frequency_weights)
    if kind != "sandwich" and (clusters is not None or correction):
        option, value = ("correction", correction) if correction else ("clusters", clusters)
        raise InvalidOption(option, value, f"none with kind={kind!r}, but with kind='sandwich'")
    if kind != "hessian" and objective.batches.data is None:
        raise InvalidOption("kind", kind, "'hessian' without data: there are no examples that scatter")
    count, weight = objective.total_examples, objective.overall_weight
    scores: LinearOperator | None = None
    if clusters is not None:
        scores = ClusteredOuterProducts(objective, clusters)
    elif kind != "hessian":
        scores = OPG(objective) if frequency_weights else OuterProducts(objective)
    total = weight if frequency_weights and clusters is None else weight * weight / count
    bread = scores if kind == "opg" and scores is not None else Hessian(objective)
    factors = {"hessian": dispersion / weight, "opg": dispersion**2 / total, "sandwich": total / weight**2}
    factor = factors[kind]
    if correction:
        draws = weight if frequency_weights else count
        if draws <= objective.num_params:
            expected = f"False, or more examples than parameters: N = {draws:g}, P = {objective.num_params}"
            raise InvalidOption("correction", correction, expected)
        factor *= (draws if clusters is None else draws - 1) / (draws - objective.num_params)
        if isinstance(scores, ClusteredOuterProducts):
            factor *= scores.count / (scores.count - 1)
    if solver is None and objective.num_params <= _DENSE:
        solver = Direct(rtol=max(_RTOL, objective.space.product_eps**0.5))
    bread = UnitDiagonal(bread) if isinstance(solver, Direct) else bread
    found = Covariance(
        objective, inverse(bread, solver=solver), scores if kind == "sandwich" else None, factor
    )
    # What the inverse of the bread is multiplied by to be that of the Hessian, in the mean.
    found.warn_unless_optimal(weight * dispersion / total if kind == "opg" else 1.0)
    return found


class Covariance(LinearOperator):
    """The covariance of parameters, ``(P, P)``; made by :func:`covariance`.

    A product takes a solve, with its certificate, or two of the sandwich.

    Examples
    --------
    The variance of the sum of two means:

    >>> import numpy as np
    >>> import ihvp
    >>> y = np.array([[1.0, 0.0], [3.0, 4.0]])
    >>> objective = ihvp.Objective(
    ...     params=np.array([2.0, 2.0]), data=y, grad=lambda mean, y: mean - y.mean(axis=0)
    ... )
    >>> sigma = ihvp.covariance(objective, "sandwich")
    >>> sigma.of(gradient=np.ones(2)).round(6)
    array([[4.5]])
    >>> sigma.diagonal().value.round(6)
    array([0.5, 2. ])
    """

    def __init__(
        self, objective: Objective, inverse: Inverse, scores: LinearOperator | None, factor: float
    ) -> None:
        super().__init__(objective.space)
        self.objective, self.inverse, self.scores, self.factor = objective, inverse, scores, factor

    def apply(self, v: Vector) -> Vector:
        x = self._solve(v)
        if self.scores is not None:
            x = self._solve(self.scores.apply(x))
        return algebra.scale(x, self.factor)

    def to_dense(self) -> Vector:
        columns = self._dense_by(self._solve)
        if self.scores is not None:
            columns = columns.mT @ (self.scores.to_dense() @ columns)
        return self.factor * columns

    def diagonal(self, *, num_samples: int | None = None, seed: int = 0) -> Estimate:
        """The variances of the parameters.

        Exact, with a standard error of 0, where the solver is Direct, as it is by default for up to 1,000
        parameters. Otherwise by random products, as :func:`~ihvp.diagonal` estimates it.

        Parameters
        ----------
        num_samples, seed : int, optional
            As for :func:`~ihvp.diagonal`. A number of samples is always obeyed.

        Returns
        -------
        Estimate
            ``.value`` and ``.standard_error`` are native vectors ``(P,)``.
        """
        if num_samples is not None or not isinstance(self.inverse.operator, UnitDiagonal):
            return diagonal(self, num_samples=num_samples, seed=seed)
        columns = self._dense_by(self._solve)
        if self.scores is None:
            values = self.space.xp.linalg.diagonal(columns)
        else:
            values = self.space.xp.sum(columns * (self.scores.to_dense() @ columns), axis=0)
        return Estimate(self.factor * values, self.space.zeros(), self.space.size)

    def of(
        self, function: Callable[[Params], Any] | None = None, *, gradient: Any = None
    ) -> NDArray[np.float64]:
        r"""The covariance of m functions of the parameters, ``(m, m)``, by the delta method.

        .. math:: J \Sigma J^\top

        Parameters
        ----------
        function : callable, optional
            ``function(params)``: an array of the framework with m entries, which the backend differentiates.
        gradient : optional
            The derivative in its place: ``(P,)``, the structure of the parameters, or ``(P, m)`` with a
            column for each function.
        """
        J, _ = gradients_of(self.objective, function, gradient)
        return np.asarray(algebra.to_numpy(J.mT @ self.apply(J)), dtype=np.float64)

    def warn_unless_optimal(self, scale: float) -> None:
        """Warn where a Newton step, ``scale`` times a solve, is long beside its standard error.

        Both are measured along the gradient, which is the direction of the longest step where the model is
        right.
        """
        gradient = self.objective.gradient()
        try:
            step = self._solve(gradient)
            image = step if self.scores is None else self._solve(self.scores.apply(step))
        except SolverError:  # at an optimum the gradient may be noise, which no tolerance need be met for
            return
        length, variance = (float(algebra.dots(gradient, x)) for x in (step, image))
        away = abs(scale * length) / (self.factor * variance) ** 0.5 if variance > 0 else 0.0
        if away > _AWAY:
            warnings.warn(
                "The parameters are not at an optimum of the objective: a Newton step moves them by "
                f"{away:.2g} standard errors; expected at most {_AWAY:g}, for a covariance is that of an "
                "optimum. Train on, or put the training's regulariser into the loss.",
                NotAtOptimum,
                stacklevel=level_outside(),
            )

    def _solve(self, v: Vector) -> Vector:
        operator = self.inverse.operator
        try:
            if isinstance(operator, UnitDiagonal):
                return operator.scaled(self.inverse.apply(operator.scaled(v)))
            return self.inverse.apply(v)
        except SolverError as error:
            undefined = found_undefined(operator, self.objective, error)
            if undefined is None:
                raise
            raise undefined from error

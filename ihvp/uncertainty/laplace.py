"""Laplace's approximation of a posterior: a normal at the optimum, with the inverse curvature."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.arguments import check_instance, check_integer, check_number, check_seed
from ihvp.backend import Vector
from ihvp.errors import InvalidOption
from ihvp.estimators import SpectralDensity, spectral_density
from ihvp.estimators.probes import gaussians, host
from ihvp.kronecker import BlockStructured
from ihvp.objective import Objective
from ihvp.operators import GaussNewton
from ihvp.operators.base import LinearOperator
from ihvp.operators.low_rank import Spectral
from ihvp.solvers import Solver
from ihvp.uncertainty.evidence import Evidence, maximise
from ihvp.uncertainty.posterior import (
    Posterior,
    Precision,
    ProductPosterior,
    known_posterior,
    with_eigenvalues,
)
from ihvp.uncertainty.predictive import (
    Predictive,
    output_covariance,
    require_half_squared_error,
    require_matching,
)
from ihvp.uncertainty.prior import Prior

# So many Lanczos steps, and what they may leave of a sample.
_STEPS, _RTOL = 200, 1e-3


class Laplace:
    r"""The normal approximation of the posterior of the parameters.

    .. math:: p(\omega \mid D) \approx \mathcal N\bigl(\omega^*,\; \Sigma\bigr), \qquad
        \Sigma^{-1} = \frac{N}{T \sigma^2}\, A + \operatorname{diag}(\alpha)

    with A the curvature of the objective's mean loss, which is the negative log likelihood of an example, and
    the prior :math:`\mathcal N(0, 1/\alpha)`, which the loss does not contain (MacKay, "A practical Bayesian
    framework for backpropagation networks", Neural Computation 4, 1992; Daxberger et al., "Laplace redux",
    NeurIPS 2021). Where examples have weights, N is their sum.

    The posterior is over the parameters that the objective differentiates by: ``only="head"`` there is that
    of a last layer.

    Parameters
    ----------
    objective : Objective
        At a minimum of ``N C(ω) / (T σ²) + Σ α ω² / 2``.
    curvature : LinearOperator, optional
        A: by default ``ihvp.GaussNewton(objective)``; or a ``KFAC``, ``EKFAC``, ``Hessian``, ``LowRank``,
        ``FullRank``. Up to 2,048 parameters its matrix is formed; above, those without their eigenvalues
        are worked with by products: solves are certified, the evidence has a standard error.
    prior_precision : float, or mapping of str to float
        α > 0, of all parameters, or by the names of parameters, layers or modules.
    noise : float, optional
        σ > 0, the standard deviation of the targets of a regression: the loss is then half the squared
        error, summed over outputs. None: the loss is a negative log likelihood as it is.
    temperature : float
        T > 0, by which the log likelihood is divided.
    solver : Solver, optional
        Of solves by products; by default as for :func:`ihvp.solve`.
    num_samples, steps, seed : int
        Of the quadrature for the evidence by products, as for :func:`ihvp.spectral_density`.

    Raises
    ------
    InvalidOption
        A precision, σ or T is not above 0; the objective has no ``predict`` for the default curvature; with
        ``noise``, the loss is not half the squared error.
    IndefinitePosterior
        The precision is singular or has negative eigenvalues. By products found where it is worked with.

    Examples
    --------
    A normal with an unknown mean, seen once, with a standard normal prior:

    >>> import numpy as np
    >>> import ihvp
    >>> objective = ihvp.Objective(params=np.array([1.0]), grad=lambda w, batch: w - 2.0)
    >>> posterior = ihvp.Laplace(objective, ihvp.Hessian(objective), prior_precision=1.0)
    >>> posterior.covariance.to_dense().round(6)
    array([[0.5]])
    """

    def __init__(
        self,
        objective: Objective,
        curvature: LinearOperator | None = None,
        *,
        prior_precision: float | Mapping[str, float] = 1.0,
        noise: float | None = None,
        temperature: float = 1.0,
        solver: Solver | None = None,
        num_samples: int | None = None,
        steps: int | None = None,
        seed: int = 0,
    ) -> None:
        check_instance("objective", objective, Objective, "an ihvp.Objective")
        curvature = GaussNewton(objective) if curvature is None else curvature
        require_matching("curvature", curvature, objective)
        above = "a finite number > 0"
        check_number("temperature", temperature, lambda number: number > 0, above)
        if noise is not None:
            check_number("noise", noise, lambda number: number > 0, f"{above}, a standard deviation, or None")
            self._outputs = require_half_squared_error(objective)
        check_seed(seed)
        self.objective, self.noise, self.temperature, self.solver = objective, noise, temperature, solver
        self.prior = Prior(objective, prior_precision)
        self._given, self._curvature = curvature, with_eigenvalues(curvature)
        self._quadrature: dict[str, Any] = {"num_samples": num_samples, "steps": steps, "seed": seed}
        self._density: list[SpectralDensity] = []
        _ = self.covariance

    @property
    def prior_precision(self) -> float | dict[str, float]:
        """α, as it was given."""
        return self.prior.precisions if self.prior.is_named else self.prior.precisions["all"]

    @property
    def mean(self) -> Vector:
        """ω*, ``(P,)``: the objective's parameters."""
        return self.objective.backend.flatten(self.objective.params)

    @property
    def precision(self) -> LinearOperator:
        """``Σ⁻¹`` as an operator."""
        return Precision(self._curvature, self._scale, self.prior.entries)

    @cached_property
    def covariance(self) -> Posterior:
        """Σ as an operator."""
        if isinstance(self._curvature, (BlockStructured, Spectral)):
            return known_posterior(self._curvature, self._scale, self.prior)
        return ProductPosterior(self._curvature, self._scale, self.prior, self.solver, self._spectrum)

    def sample(self, n: int, seed: int = 0, *, steps: int = _STEPS, rtol: float = _RTOL) -> Vector:
        """Draws from the posterior, ``(P, n)``: columns of parameters, for ``objective.at``.

        Exact where the curvature has its eigenvalues or is formed, by Lanczos steps elsewhere.

        Parameters
        ----------
        n, seed : int
        steps : int
            The most Lanczos steps, and vectors ``(P, n)`` that are held.
        rtol : float
            What they may leave of the distance from the mean, by a bound that is computed.

        Raises
        ------
        SamplesNotConverged
            The bound is larger.
        """
        check_integer("n", n, 1)
        check_seed(seed)
        check_integer("steps", steps, 1)
        check_number("rtol", rtol, lambda number: number > 0, "a finite number > 0")
        white = gaussians(self.objective.space, np.random.default_rng(seed), int(n))
        return self.covariance.sample(white, int(steps), rtol) + self.mean[:, None]

    def predictive(self, data: Any = None) -> Predictive:
        r"""The normal distribution of a linearised model's outputs, :math:`\mathcal N(f, J \Sigma J^\top)`.

        (Immer, Korzepa and Bauer, "Improving predictions of Bayesian neural nets via local linearization",
        AISTATS 2021.) J is pulled back for some examples at a time.

        Parameters
        ----------
        data : optional
            As the objective's; by default that, of which each of several processes predicts its own part.

        Raises
        ------
        InvalidOption
            The objective has no ``predict``.
        MissingCapability
            The backend cannot open models.
        """
        mean, covariance = output_covariance(self.objective, self.covariance, data)
        return Predictive(mean, covariance, self.noise)

    def log_marginal_likelihood(self) -> Evidence:
        r"""The evidence by Laplace's approximation, with its derivatives.

        .. math:: \log p(D \mid \omega^*) - \tfrac12 \sum_p \alpha_p \omega_p^{*2}
            - \tfrac12 \log\det \bigl(\Sigma^{-1} \operatorname{diag}(\alpha)^{-1}\bigr)

        (MacKay 1992; Immer et al., "Scalable marginal likelihood estimation for model selection in deep
        learning", ICML 2021.)
        """
        found, gradient = self._evidence(), self.objective.gradient()
        step = algebra.axpy(
            self._scale * gradient, 1.0, self.objective.space.asarray(self.prior.entries) * self.mean
        )
        gap = float(algebra.dots(step, self.covariance.apply(step))) / 2
        return replace(found, gap=gap)

    def optimise(self, *, noise: bool = False) -> Laplace:
        """The same with the prior precisions of the largest evidence, at the same parameters and curvature.

        By the evidence's closed derivatives; its ``slopes`` tell how flat it is where the search ended.

        Parameters
        ----------
        noise : bool
            Whether to look for the noise, too.

        Raises
        ------
        NoEvidenceMaximum
            The search did not end at a maximum.
        InvalidOption
            There is no noise; the parameters of a part are all 0; several precisions, where the curvature is
            known by its products alone.
        """
        if noise and self.noise is None:
            raise InvalidOption("noise", noise, "False where the objective is no regression: noise=None")
        for name, square in self._squares.items():
            if not square:
                raise InvalidOption("prior_precision", name, "a part with parameters other than 0")
        sizes = self.prior.sums(np.ones(self.objective.num_params))
        scales = [size / 2 for size in sizes.values()]
        start = [np.log(value) for value in self.prior.precisions.values()]
        if noise:
            start.append(np.log(cast(float, self.noise)))
            scales.append(self._weight * self._outputs)

        def evaluate(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            found = self._at(point, noise=noise)._evidence()
            slopes = [slope for name, slope in found.slopes.items() if noise or name != "noise"]
            return found.value, np.array(slopes)

        return self._at(maximise(evaluate, np.array(start), np.array(scales)), noise=noise)

    def report(self) -> str:
        """What the posterior is made of, and what of the curvature is left out, line by line."""
        how = "its eigenvalues" if isinstance(self._curvature, (BlockStructured, Spectral)) else "products"
        given = self._given
        lines = [
            f"posterior of {given.space.size:,} parameters, by {type(given).__name__} and {how}",
            f"precision: {self._scale:g} times the curvature, plus "
            + ", ".join(f"{value:g} ({name})" for name, value in self.prior.precisions.items()),
        ]
        if isinstance(given, Spectral) and given.values.size < given.space.size:
            missing, least = given.space.size - given.values.size, float(given.values.min())
            prior = float(self.prior.entries.min())
            ratio = (self._scale * max(least, given.tail) + prior) / prior
            lines.append(
                f"left out: {missing:,} eigenvalues, taken for {given.tail:.3g}. If they lie between 0 and "
                f"{least:.3g}, variances along them are wrong by a factor of up to {ratio:.3g}, and the "
                f"evidence by up to {missing * np.log(ratio) / 2:.3g}"
            )
        return "\n".join(lines)

    @cached_property
    def _weight(self) -> float:
        return self.objective.overall_weight

    @cached_property
    def _loss(self) -> float:
        return self.objective.value()

    @cached_property
    def _squares(self) -> dict[str, float]:
        return self.prior.sums(host(self.mean) ** 2)

    @property
    def _scale(self) -> float:
        return self._weight / self.temperature / (self.noise or 1.0) ** 2

    def _spectrum(self) -> SpectralDensity:
        if not self._density:
            self._density.append(spectral_density(self._curvature, **self._quadrature))
        return self._density[0]

    def _evidence(self) -> Evidence:
        likelihood = -self._scale * self._loss
        if self.noise is not None:
            each = self._outputs * np.log(self.noise * np.sqrt(2 * np.pi))
            likelihood -= self._weight / self.temperature * each
        determinant, kept = self.covariance.log_determinant(), self.covariance.shrinkage()
        sizes = self.prior.sums(np.ones(self.objective.num_params))
        scatter = {name: self.prior.precisions[name] * square for name, square in self._squares.items()}
        slopes = {name: (sizes[name] - scatter[name] - kept[name]) / 2 for name in sizes}
        effective = sum(sizes.values()) - sum(kept.values())
        if self.noise is not None:
            examples = self._weight * self._outputs / self.temperature
            slopes["noise"] = 2 * self._scale * self._loss - examples + effective
        value = likelihood - (sum(scatter.values()) + determinant.value) / 2
        return Evidence(
            float(value), determinant.standard_error / 2, float(likelihood), slopes, effective, np.nan
        )

    def _at(self, point: NDArray[np.float64], *, noise: bool) -> Laplace:
        """The same with other precisions, and noise, by their logarithms."""
        other, values = copy.copy(self), np.exp(point).tolist()
        other.__dict__.pop("covariance", None)
        if noise:
            other.noise = values.pop()
        named = dict(zip(self.prior.precisions, values, strict=True))
        other.prior = Prior(self.objective, named if self.prior.is_named else named["all"])
        return other

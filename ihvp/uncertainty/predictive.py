"""The distribution of a model's outputs, of which the parameters have a distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Vector
from ihvp.errors import InvalidOption, NonFinite, VectorError
from ihvp.estimators.probes import host
from ihvp.kronecker.blocks import KroneckerBlock
from ihvp.kronecker.coverage import opened, require_used
from ihvp.kronecker.factors import weight_gradients
from ihvp.kronecker.outputs import Layout
from ihvp.layers import Layer
from ihvp.objective import Objective
from ihvp.operators.base import LinearOperator, check_operator
from ihvp.uncertainty.jacobian import (
    explained,
    gram_of_roots,
    jacobian,
    opened_pieces,
    pulled_layers,
    require_layers,
    rows_of,
    sums_first,
    unit_cotangents,
)
from ihvp.uncertainty.posterior import KnownPosterior

_MISMATCH = 1e-3


@dataclass(frozen=True)
class Predictive:
    """A normal distribution of the D outputs of each of n examples.

    Attributes
    ----------
    mean : ndarray (n, D)
        The outputs at the objective's parameters.
    covariance : ndarray (n, D, D)
        Of the outputs, by the parameters' uncertainty alone.
    noise : float or None
        The standard deviation of the targets about the outputs.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> found = ihvp.uncertainty.Predictive(np.array([[2.0, 0.0]]), np.array([[[8.0, 0.0], [0.0, 8.0]]]))
    >>> found.probabilities().round(3), found.standard_deviation.round(3)
    (array([[0.728, 0.272]]), array([[2.828, 2.828]]))
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    noise: float | None = None

    @property
    def variance(self) -> NDArray[np.float64]:
        """The diagonal of ``covariance``, ``(n, D)``."""
        return np.asarray(np.einsum("ndd->nd", self.covariance))

    @property
    def standard_deviation(self) -> NDArray[np.float64]:
        """Of the targets, ``(n, D)``: the noise included, where there is one."""
        return np.sqrt(self.variance + (self.noise or 0.0) ** 2)

    def probabilities(self) -> NDArray[np.float64]:
        r"""Class probabilities ``(n, D)``, by the probit approximation.

        .. math:: \operatorname{softmax}\bigl(f / \sqrt{1 + \pi v / 8}\bigr)

        with f the outputs, which are logits, and v their variances; of one output its sigmoid (MacKay, "The
        evidence framework applied to classification networks", Neural Computation 4, 1992).
        """
        logits = self.mean / np.sqrt(1 + np.pi / 8 * self.variance)
        if logits.shape[1] == 1:
            return np.asarray(np.exp(-np.logaddexp(0, -logits)))
        return np.asarray(np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)))


def predictive_variance(objective: Objective, covariance: LinearOperator, data: Any = None) -> Any:
    r"""The variances of a model's outputs, to first order, :math:`\operatorname{diag}(J \Sigma J^\top)`.

    J is the Jacobian of the outputs of an example by the parameters. It is made of pulled-back unit vectors,
    for some examples at a time; of layers with Kronecker factors it is not formed.

    Parameters
    ----------
    objective : Objective
        Made with ``predict=``.
    covariance : LinearOperator
        Σ, the covariance of the parameters: ``ihvp.Laplace(…).covariance``, or any other.
    data : optional
        As the objective's; by default that.

    Returns
    -------
    ndarray (n, D)
        A row for each example; D outputs, array after array and row by row.

    Raises
    ------
    InvalidOption
        The objective has no ``predict``.
    MissingCapability
        The backend cannot open models.

    Examples
    --------
    >>> import ihvp
    >>> def error_bars(objective, test_data):
    ...     posterior = ihvp.Laplace(objective, ihvp.KFAC(objective), prior_precision=1e-2)
    ...     return ihvp.predictive_variance(objective, posterior.covariance, test_data) ** 0.5
    """
    return np.einsum("ndd->nd", output_covariance(objective, covariance, data)[1])


def output_covariance(
    objective: Objective, covariance: LinearOperator, data: Any
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The outputs ``(n, D)`` and ``J Σ Jᵀ (n, D, D)``."""
    predict, _ = objective.require_predict()
    require_matching("covariance", covariance, objective)
    require_layers(objective)
    known = covariance if isinstance(covariance, KnownPosterior) else None
    factors, root = (known.factors, known.root) if known is not None else (None, None)
    whole = factors is not None
    means: list[NDArray[np.float64]] = []
    found: list[NDArray[np.float64]] = []
    test = objective if data is None else objective.on(data)
    for index, piece, model, layout in opened_pieces(test, formed=factors is None):
        whole = whole or (not found and explained(objective, predict, piece))
        means.append(host(layout.rows(model.outputs()[:, None])[..., 0]))
        units = unit_cotangents(layout, model.outputs())
        pulled = pulled_layers(model, units) if whole else {}
        if factors is not None:
            require_used(factors, pulled, predict)
            parts = [host(_by_factors(*factors[name], *pulled[name])) for name in factors]
            found.append(np.sum(parts, axis=0))
        elif whole and root is not None and sums_first(objective, pulled):
            found.append(host(gram_of_roots(pulled, root)))
        else:
            rows = rows_of(pulled) if whole else jacobian(objective, predict, piece, model, units)
            # Of a root, half of the products.
            left = rows if known is None else known.half(rows)
            right = covariance.apply(rows) if known is None else left
            shape = (-1, layout.width, layout.count)
            left, right = (np.moveaxis(host(x).reshape(shape), 2, 0) for x in (left, right))
            found.append(left.transpose(0, 2, 1) @ right)
        if not (np.all(np.isfinite(means[-1])) and np.all(np.isfinite(found[-1]))):
            raise NonFinite("An output of the model, or its derivative", index)
    joined = np.concatenate(found)
    return np.concatenate(means), (joined + joined.transpose(0, 2, 1)) / 2


def require_matching(name: str, operator: Any, objective: Objective) -> None:
    """Refuse what is no operator on vectors of the objective's parameters."""
    check_operator(operator, name)
    if not operator.space.matches(objective.space):
        raise VectorError(
            f"The {name} is {operator!r}; expected that of the objective's {objective.num_params:,} "
            f"parameters, of {objective.space.dtype} on {objective.space.device}."
        )


def require_half_squared_error(objective: Objective) -> int:
    """The number of outputs of an example, of a loss that is half the squared error summed over them.

    InvalidOption where the loss is another one, by a product with its curvature in the outputs.
    """
    predict, loss = objective.require_predict()
    require_layers(objective)
    batch, count = next(iter(objective.batches))
    model = opened(objective, predict, batch)
    layout, outputs = Layout(model.shapes), model.outputs()
    probe = algebra.as_like(np.random.default_rng(0).standard_normal((outputs.shape[0], 1)), outputs)
    relative, _ = objective.relative_weights(objective.weighting.of(batch, count))
    found = host(layout.rows(model.output_hvp(loss, probe)))
    expected = host(layout.rows(probe)) * relative[:, None, None]
    size = float(np.sum(expected**2))
    if not np.linalg.norm(found - expected) <= _MISMATCH * size**0.5:
        raise InvalidOption(
            "loss",
            loss,
            "half the squared error, summed over the outputs of an example, where noise= is given: its "
            f"curvature in the outputs is {float(np.sum(found * expected)) / size:.3g} in place of 1",
        )
    return layout.width


def _by_factors(
    block: KroneckerBlock, weights: Vector, layer: Layer, inputs: Vector, gradient: Vector
) -> Vector:
    """A layer's part of ``J Σ Jᵀ``, ``(B, D, D)``; ``weights`` are the eigenvalues of its block of Σ."""
    xp = array_api_compat.array_namespace(gradient)
    if layer.groups == 1 and gradient.shape[2] == 1 and block.q_in is not None:
        # An outer product u vᵀ: the sum over the inputs is one product.
        u = xp.permute_dims(gradient[:, :, 0, 0, :] @ block.q_out[0], (1, 0, 2))
        squares = (inputs[:, 0, 0, :] @ block.q_in[0]) ** 2
        return (u * (squares @ weights[0].T)[:, None, :]) @ xp.matrix_transpose(u)
    matrices = xp.permute_dims(block.rotate(weight_gradients(gradient, inputs)), (1, 0, 2, 3, 4))
    rows = xp.reshape(matrices, (*matrices.shape[:2], -1))
    return (rows * xp.reshape(weights, (-1,))) @ xp.matrix_transpose(rows)

"""The course of training, from some of its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ihvp.arguments import check_instance
from ihvp.attribution.checkpoints import at_checkpoints
from ihvp.errors import InvalidOption
from ihvp.influence.attribution import Attribution
from ihvp.influence.trained import without_curvature
from ihvp.objective import Objective


class TracIn(Attribution):
    r"""The steps of training that an example took part in, summed over checkpoints.

    .. math:: S_{ji} = \frac1N \sum_c \eta_c\, \nabla L(z_j; \omega_c)^T \nabla C_i(\omega_c)

    (Pruthi et al., "Estimating training data influence by tracing gradient descent", NeurIPS 2020, section
    3.2). With :math:`\eta_c` the sum of the learning rates of the steps that checkpoint c stands for, a score
    is the rise of the loss at test point j had these steps been taken without example i, to first order: the
    sign and the scale of :class:`ihvp.Influence`.

    Parameters
    ----------
    objective : Objective
        The loss that the model was trained on, and the training data.
    checkpoints : sequence
        Parameters in the form of the objective's, state dictionaries, or files: ``.safetensors``, ``.npz``,
        those of ``torch.save`` without pickled code, ``.msgpack`` of flax, ``.weights.h5`` of Keras. They are
        all held at once.
    learning_rates : float or sequence of float
        η, one for all or one for each checkpoint.
    train_loss, version : optional
        As for :class:`ihvp.Influence`.

    Raises
    ------
    ParameterError
        A checkpoint is that of another architecture.
    DataError
        A file holds no parameters, or pickled code.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> x = np.array([[0.0], [2.0], [4.0]])
    >>> objective = ihvp.Objective(params=x.mean(axis=0), data=x, grad=lambda w, x: w - x.mean(axis=0))
    >>> method = ihvp.TracIn(objective, [np.array([0.0]), np.array([1.5])], learning_rates=[1.0, 0.5])
    >>> np.asarray(method.scores(np.array([[3.0]]))).round(3)
    array([[-0.375,  2.125,  4.625]])
    """

    def __init__(
        self,
        objective: Objective,
        checkpoints: Sequence[Any],
        learning_rates: float | Sequence[float] = 1.0,
        *,
        train_loss: Callable[..., Any] | None = None,
        version: str | None = None,
    ) -> None:
        check_instance("objective", objective, Objective, "an ihvp.Objective")
        models = [
            without_curvature(one, train_loss, version) for one in at_checkpoints(objective, checkpoints)
        ]
        expected = f"a finite number ≥ 0, or {len(models)} of them, one for each checkpoint"
        try:
            rates = np.broadcast_to(np.asarray(learning_rates, np.float64), (len(models),))
        except (TypeError, ValueError) as error:
            raise InvalidOption("learning_rates", learning_rates, expected) from error
        if not np.all(np.isfinite(rates) & (rates >= 0)):
            raise InvalidOption("learning_rates", learning_rates, expected)
        super().__init__(list(zip(rates.tolist(), models, strict=True)))

"""Representer points: a prediction as a sum over training examples, by the last layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ihvp.arguments import check_number
from ihvp.influence.attribution import Attribution
from ihvp.influence.trained import without_curvature
from ihvp.objective import Objective


class RepresenterPoints(Attribution):
    r"""The part of each training example in the outputs of a last layer with weight decay.

    At an optimum of a mean loss plus :math:`\tfrac{\gamma}{2} \|W\|^2` the last layer's weights are
    :math:`W = -\frac{1}{\gamma N} \sum_i \nabla_W C_i`, a sum over examples, and so are its outputs (Yeh et
    al., "Representer point selection for explaining deep neural networks", NeurIPS 2018, theorem 3.1). The
    score

    .. math:: S_{ji} = \frac{1}{\gamma N} \nabla_W L(z_j)^T \nabla_W C_i

    is by how much the loss at test point j rises, to first order, when the part of example i is taken out.

    Parameters
    ----------
    objective : Objective
        Made with ``only=`` the weights of the last layer, which have the decay, at its optimum.
    decay : float
        γ > 0.
    train_loss : callable
        The loss of the examples without the decay.
    version : str, optional
        As for :class:`ihvp.Influence`.

    Examples
    --------
    >>> import ihvp
    >>> def last_layer(loss_with_decay, loss, model, data):
    ...     objective = ihvp.Objective(loss_with_decay, model, data, only="head.weight")
    ...     return ihvp.RepresenterPoints(objective, 1e-3, train_loss=loss)
    """

    def __init__(
        self,
        objective: Objective,
        decay: float,
        *,
        train_loss: Callable[..., Any],
        version: str | None = None,
    ) -> None:
        check_number("decay", decay, lambda number: number > 0, "a finite number above 0")
        model = without_curvature(objective, train_loss, version, value=float(decay), anywhere=False)
        super().__init__([(1.0, model)])

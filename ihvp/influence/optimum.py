"""Whether the parameters are where influence functions hold: near an optimum of the objective."""

from __future__ import annotations

import warnings

import numpy as np

from ihvp import algebra
from ihvp.influence.blocks import blocks, rows_at_once
from ihvp.influence.caller import level_outside
from ihvp.influence.gradients import gradients
from ihvp.objective import Objective

# The typical gradient is that of the first examples; more of them would not make it more typical. So many
# are enough where a block of bounded memory holds fewer.
_EXAMPLES, _ENOUGH, _RATIO = 256, 16, 0.1


class NotAtOptimum(UserWarning):
    """The parameters are not at the optimum that an answer is about.

    For influence the gradient of the objective is not small beside those of its examples; for a covariance
    the optimum is more than a tenth of a standard error away; for a hypergradient the inner gradient is not
    small beside that at parameters nearby.

    Examples
    --------
    The optimum is the mean of the data, 2, and not 0:

    >>> import warnings
    >>> import numpy as np
    >>> import ihvp
    >>> x = np.array([[0.0], [2.0], [4.0]])
    >>> objective = ihvp.Objective(params=np.zeros(1), data=x, grad=lambda w, x: w - x.mean(axis=0))
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     scores = ihvp.Influence(objective).scores(x)
    >>> [warning.category.__name__ for warning in caught]
    ['NotAtOptimum']
    """


def warn_unless_optimal(objective: Objective) -> None:
    """Warn where ``‖∇C‖`` is more than a tenth of the typical ``‖∇C_i‖``.

    Influence is the change of an optimum (Koh and Liang 2017, section 2); elsewhere it describes a step that
    the training has not taken.
    """
    size = float(algebra.norms(objective.gradient()))
    typicals = objective.processes.each(_typical(objective))
    typical = float(typicals[np.flatnonzero(typicals)[:1]].sum())  # of the first process that has any
    if size > _RATIO * typical:
        warnings.warn(
            f"The parameters are not at an optimum of the objective: its gradient has norm {size:.1e}, "
            f"those of single examples about {typical:.1e}; expected at most a tenth of that. Influence "
            "tells how an optimum moves: train on, put the training's regulariser into the loss, or read the "
            "scores as a ranking only.",
            NotAtOptimum,
            stacklevel=level_outside(),
        )


def _typical(objective: Objective) -> float:
    """The root mean square of ``‖∇C_i‖`` over the first examples that have any."""
    squares: list[float] = []
    for block in blocks(objective.batches, min(_EXAMPLES, rows_at_once(objective.num_params))):
        squares += (algebra.norms(gradients(objective, block, "training").T) ** 2).tolist()
        if len(squares) >= _ENOUGH and any(squares):
            break
    return float(np.mean(squares) ** 0.5) if squares else 0.0

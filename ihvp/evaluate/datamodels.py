"""Predicted against actual losses after training on subsets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ihvp.evaluate.agreement import Agreement, agreement
from ihvp.evaluate.outcomes import Outcomes
from ihvp.evaluate.scores import predicted_rises


def lds(
    scores: Any, outcomes: Outcomes, test_data: Any = None, test_loss: Callable[..., Any] | None = None
) -> Agreement:
    r"""The linear datamodelling score: how well scores predict the losses after training on subsets.

    .. math:: \mathrm{LDS}_j = \mathrm{Spearman}_K \Big( L_j(K), \; -\sum_{i \in K} S_{ji} \Big)

    over subsets K of the training data, where :math:`L_j(K)` is the loss at test point j after training on K,
    and :math:`S_{ji}` the predicted rise of it when example i is removed: the sign is that of
    :class:`ihvp.Influence` (Park, Georgiev, Ilyas, Leclerc and Madry, "TRAK: Attributing model behavior at
    scale", ICML 2023, section 2). 1 is a perfect ranking, 0 what random scores have.

    Parameters
    ----------
    scores : array (n_test, n_train), ihvp.influence.Scores, or a method
        A method has ``scores(test_data, test_loss=…)``, as :class:`ihvp.Influence`, or is a function of the
        test data that returns such an array. Of a method whose scores are high where examples harm, pass the
        negative ones.
    outcomes : Outcomes
        From :func:`retrain`, or your own. Hundred subsets of half of the data are usual.
    test_data, test_loss : optional
        Those of the outcomes; for a method only.

    Returns
    -------
    Agreement
        Its ``value`` is the mean over test points.

    Raises
    ------
    InvalidOption
        The scores are not one finite number for each test point and training example, or constant; the
        outcomes have fewer than five subsets.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> scores = np.random.default_rng(0).normal(size=(3, 20))
    >>> subsets = ihvp.evaluate.random_subsets(20, count=50)
    >>> outcomes = ihvp.evaluate.Outcomes(subsets, -(subsets @ scores.T))
    >>> print(ihvp.evaluate.lds(scores, outcomes))
    LDS 1.000 ± 0.000 (over test points 0.000, over trainings 0.000; 3 test points)
    """
    predicted, rounding = predicted_rises(scores, outcomes, test_data, test_loss)
    return agreement("LDS", predicted, outcomes.losses.T, rounding, ranks=True)


def leave_one_out(
    scores: Any, outcomes: Outcomes, test_data: Any = None, test_loss: Callable[..., Any] | None = None
) -> Agreement:
    """Pearson's correlation of predicted with actual changes when single examples are removed.

    :func:`ihvp.leave_one_out` shows one test point, or the mean loss, and predicts with influence functions;
    this judges any scores at many test points.

    Parameters
    ----------
    scores, test_data, test_loss
        As for :func:`lds`.
    outcomes : Outcomes
        From :func:`retrain` with ``subsets=ihvp.evaluate.all_but(n_train, removed)``; groups do as well.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> scores = np.random.default_rng(0).normal(size=(2, 30))
    >>> outcomes = ihvp.evaluate.Outcomes(ihvp.evaluate.all_but(30, range(10)), 2 * scores[:, :10].T)
    >>> round(ihvp.evaluate.leave_one_out(scores, outcomes).value, 6)
    1.0
    """
    predicted, rounding = predicted_rises(scores, outcomes, test_data, test_loss)
    return agreement("Leave-one-out correlation", predicted, outcomes.losses.T, rounding, ranks=False)

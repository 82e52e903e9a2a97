"""Products of gradients, as they are or divided by their lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.influence.attribution import Attribution
from ihvp.influence.blocks import counted_blocks, rows_at_once
from ihvp.influence.gradients import gradients
from ihvp.influence.points import Unsolved
from ihvp.influence.store import Store
from ihvp.influence.tiles import Part, Tile
from ihvp.influence.trained import without_curvature
from ihvp.objective import Objective


class GradientDot(Attribution):
    r"""Products of gradients: one step of gradient descent, in the place of the way to an optimum.

    .. math:: S_{ji} = \frac1N \nabla L(z_j)^T \nabla C_i

    is by how much the loss at test point j rises, to first order and for each unit of the step's length, when
    a step is taken without example i (Charpiat et al., "Input similarity from the neural network
    perspective", NeurIPS 2019). Of the influence of an optimum it is what remains where the curvature is the
    identity.

    Parameters
    ----------
    objective : Objective
        The loss that the model is trained on, the parameters and the training data.
    train_loss, version : optional
        As for :class:`ihvp.Influence`.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> x = np.array([[0.0], [2.0], [4.0]])
    >>> objective = ihvp.Objective(params=x.mean(axis=0), data=x, grad=lambda w, x: w - x.mean(axis=0))
    >>> np.asarray(ihvp.GradientDot(objective).scores(np.array([[3.0]]))).round(3)
    array([[-0.667,  0.   ,  0.667]])
    """

    def __init__(
        self,
        objective: Objective,
        *,
        train_loss: Callable[..., Any] | None = None,
        version: str | None = None,
    ) -> None:
        super().__init__([(1.0, without_curvature(objective, train_loss, version))])


class GradientCosine(GradientDot):
    r"""The cosine of the angle between gradients.

    .. math:: S_{ji} = \frac{\nabla L(z_j)^T \nabla C_i}{\|\nabla L(z_j)\|\, \|\nabla C_i\|}

    It does not count how large gradients are, which outliers win by. It is no change of a loss: from −1 to 1,
    and 0 where a gradient is zero.

    Parameters and errors are those of :class:`GradientDot`.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> x = np.array([[0.0], [2.0], [4.0]])
    >>> objective = ihvp.Objective(params=x.mean(axis=0), data=x, grad=lambda w, x: w - x.mean(axis=0))
    >>> np.asarray(ihvp.GradientCosine(objective).scores(np.array([[3.0]])))
    array([[-1.,  0.,  1.]])
    """

    def _tiles(
        self, parts: Sequence[Part], progress: bool | None, store: Store | None = None
    ) -> Iterator[Tile]:
        (part,) = parts
        assert isinstance(part.points, Unsolved)  # nobody can have inverse products of this kind
        tests = _lengths(part.points.question, "test", 0.0)
        examples = _lengths(part.training, "training", 1.0) / part.model.total
        for row, column, tile in super()._tiles(parts, progress, store):
            first = column - part.training.first
            lengths = np.outer(tests[row : row + len(tile)], examples[first : first + tile.shape[1]])
            yield row, column, divided(tile, lengths)

    def _settings(self) -> dict[str, str]:
        return {"method": "cosine"}


def divided(tile: NDArray[Any], lengths: NDArray[np.float64]) -> NDArray[Any]:
    """A tile divided entry by entry; 0 where there is nothing to divide by."""
    found: NDArray[Any] = np.divide(tile, lengths, where=lengths > 0, out=np.zeros(tile.shape))
    return found.astype(tile.dtype)


def _lengths(objective: Objective, what: str, power: float) -> NDArray[np.float64]:
    found = [
        algebra.norms(gradients(objective, block, what, power).T)
        for block in counted_blocks(objective, rows_at_once(objective.num_params))
    ]
    return np.concatenate([np.zeros(0), *found])

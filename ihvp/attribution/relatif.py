"""Influence divided by what an example does to the whole model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from ihvp.arguments import check_choice
from ihvp.attribution.similarity import divided
from ihvp.influence import Influence
from ihvp.influence.attribution import Attribution
from ihvp.influence.self_influence import own_products
from ihvp.influence.store import Store
from ihvp.influence.tiles import Part, Tile
from ihvp.objective import Objective
from ihvp.operators import LinearOperator
from ihvp.solvers import Solver


class RelatIF(Attribution):
    r"""Relative influence: examples that act on one prediction, and not on all of them.

    .. math:: S_{ji} = \frac1N \frac{\nabla L(z_j)^T A^{-1} \nabla C_i}{\sqrt{\nabla C_i^T A^{-1} \nabla C_i}}
        \qquad \text{or} \qquad
        S_{ji} = \frac1N \frac{\nabla L(z_j)^T A^{-1} \nabla C_i}{\|A^{-1} \nabla C_i\|},
        \qquad A = H + \lambda I

    (Barshan et al., "RelatIF: identifying explanatory training examples via relative influence", AISTATS
    2020, sections 3.1 and 3.2). The sign is that of influence; the scale is influence for each unit of change
    in the losses of all, or in the parameters. Outliers, which change everything, no longer lead each list.

    Parameters
    ----------
    objective, damping, solver, train_loss, curvature, version
        As for :class:`ihvp.Influence`.
    relative_to : {"loss", "parameters"}
        The first formula, l-RelatIF, or the second one, θ-RelatIF.

    Notes
    -----
    Each training example takes a solve of its own, unless the curvature has a closed form, as
    :class:`ihvp.EKFAC` has, or ``solver=ihvp.Direct()`` factorises once.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> x = np.array([[0.0], [2.5], [3.5]])
    >>> objective = ihvp.Objective(params=x.mean(axis=0), data=x, grad=lambda w, x: w - x.mean(axis=0))
    >>> np.asarray(ihvp.RelatIF(objective).scores(np.array([[3.0]]))).round(3)
    array([[-0.333,  0.333,  0.333]])
    """

    def __init__(
        self,
        objective: Objective,
        damping: float = 0.0,
        solver: Solver | Literal["auto"] | None = None,
        *,
        relative_to: Literal["loss", "parameters"] = "loss",
        train_loss: Callable[..., Any] | None = None,
        curvature: LinearOperator | None = None,
        version: str | None = None,
    ) -> None:
        check_choice("relative_to", relative_to, ("loss", "parameters"))
        influence = Influence(
            objective, damping, solver, train_loss=train_loss, curvature=curvature, version=version
        )
        self.relative_to = relative_to
        super().__init__([(1.0, influence._model)])

    def _tiles(
        self, parts: Sequence[Part], progress: bool | None, store: Store | None = None
    ) -> Iterator[Tile]:
        (part,) = parts
        squares, _ = own_products(
            part.model, part.training, progress, power=1.0, squared=self.relative_to == "parameters"
        )
        lengths = np.sqrt(np.maximum(squares, 0.0))
        for row, column, tile in super()._tiles(parts, progress, store):
            divisors = np.broadcast_to(lengths[column : column + tile.shape[1]], tile.shape)
            yield row, column, divided(tile, divisors)

    def _settings(self) -> dict[str, str]:
        return {"method": f"relative to {self.relative_to}"}

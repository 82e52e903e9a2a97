"""LoGra: projections by the layers' own factors, with the curvature of what is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ihvp.index import GradientIndex, build_index
from ihvp.index.records import IndexDtype
from ihvp.objective import Objective
from ihvp.projection import Projection


class LoGra(GradientIndex):
    r"""Influence in a small space for each layer, :math:`R_{out} \otimes R_{in}` of its gradients.

    .. math:: S_{ji} = \frac1N (R \nabla L(z_j))^T (G + \lambda I)^{-1} R \nabla C_i, \qquad
        G = \frac1N \sum_i R \nabla C_i (R \nabla C_i)^T

    (Choe et al., "What is your data worth to GPT? LLM-scale data valuation with influence functions", 2024,
    sections 3.1 and 3.2, with random projections). It is an :func:`ihvp.build_index` of factored projections,
    opened with its own Gram matrix.

    Parameters
    ----------
    objective : Objective
        Made with ``predict=``.
    out : path
        The folder of the index.
    dim : int
        Numbers kept of a gradient, over all layers.
    damping : float
        λ > 0, unless there are more examples than ``dim``.
    seed, dtype, train_loss, progress
        As for :func:`ihvp.build_index`.

    Examples
    --------
    >>> import ihvp
    >>> def behind(objective, test_data):
    ...     return ihvp.LoGra(objective, "gradients", dim=4096, damping=1e-6).top_k(test_data, 10)
    """

    def __init__(
        self,
        objective: Objective,
        out: str | Path,
        dim: int = 4096,
        damping: float = 0.0,
        *,
        seed: int = 0,
        dtype: IndexDtype = "float16",
        train_loss: Callable[..., Any] | None = None,
        progress: bool | None = None,
    ) -> None:
        projection = Projection(dim, "factored", seed)
        build_index(objective, out, projection, dtype, train_loss=train_loss, progress=progress)
        super().__init__(out, objective, curvature="gram", damping=damping)

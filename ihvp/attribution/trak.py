"""TRAK: the kernel of a model's gradients after random projection, over an ensemble of checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp import fingerprint
from ihvp.arguments import check_instance, check_path
from ihvp.attribution.checkpoints import at_checkpoints
from ihvp.errors import InvalidOption
from ihvp.index import GradientIndex, build_index
from ihvp.index.records import IndexDtype
from ihvp.index.streamed import Stream, Streamed
from ihvp.influence.blocks import counted_blocks, windows
from ihvp.influence.store import Store
from ihvp.influence.trained import without_curvature
from ihvp.objective import Objective
from ihvp.processes import Processes
from ihvp.projection import Projection

_DIM = 2048
_HOLDS = "derivatives", "rows", "training examples"


class TRAK(Streamed):
    r"""Influence in the linear model that a network is near its parameters, after random projection.

    .. math:: S_{ji} = -\frac1N \Bigl(\frac1M \sum_m \phi_m(z_j)^T (G_m + \lambda I)^{-1} \phi_m(z_i)\Bigr)
        \Bigl(\frac1M \sum_m \frac{\partial C_i}{\partial f}\Bigr), \qquad
        \phi_m = R_m \nabla f(\cdot\,; \omega_m), \quad G_m = \frac1N \sum_i \phi_m(z_i) \phi_m(z_i)^T

    for an output f of the model that the loss is a function of, and M checkpoints or trainings (Park et al.,
    "TRAK: attributing model behavior at scale", ICML 2023, equations 15 to 17). A score is the predicted fall
    of f at test point j, or the rise of ``test_loss``, when example i is removed: positive where it helps.

    Parameters
    ----------
    objective : Objective
        The loss that the model was trained on, and the training data.
    output : callable
        f, in the form of the objective's losses, as a mean over a batch: for classes the margin
        :math:`\log p / (1 - p)` of the label.
    out : path
        A folder for an index of each checkpoint.
    checkpoints : sequence, optional
        As for :class:`ihvp.TracIn`; by default the parameters of the objective alone. Independent trainings
        are worth more than checkpoints of one.
    projection : Projection, optional
        By default ``Projection(2048)``; each checkpoint has a seed of its own, from this one on.
    damping : float
        λ > 0, unless there are more examples than ``dim``.
    dtype, version, progress
        As for :func:`ihvp.build_index`.

    Notes
    -----
    The derivatives of the loss by f are those that make ``∇C_i`` a multiple of ``∇f``, after projection.

    Examples
    --------
    >>> import ihvp
    >>> def scored(objective, margin, trainings, test_data):
    ...     return ihvp.TRAK(objective, margin, "trak", trainings, damping=1e-3).scores(test_data)
    """

    def __init__(
        self,
        objective: Objective,
        output: Callable[..., Any],
        out: str | Path,
        checkpoints: Sequence[Any] | None = None,
        *,
        projection: Projection | None = None,
        damping: float = 0.0,
        dtype: IndexDtype = "float16",
        version: str | None = None,
        progress: bool | None = None,
    ) -> None:
        check_instance("objective", objective, Objective, "an ihvp.Objective")
        check_path("out", out)
        if not callable(output):
            raise InvalidOption("output", output, "a function in the form of the objective's loss")
        if projection is None:
            projection = Projection(min(_DIM, objective.num_params))
        check_instance("projection", projection, Projection, "an ihvp.Projection")
        self.objective, self.output = objective, output
        objectives = [objective] if checkpoints is None else at_checkpoints(objective, checkpoints)
        self.indices: list[GradientIndex] = []
        derivatives = np.zeros(objective.total_examples)
        for number, one in enumerate(objectives):
            folder, seeded = Path(out) / str(number), replace(projection, seed=projection.seed + number)
            build_index(one, folder, seeded, dtype, train_loss=output, version=version, progress=progress)
            index = GradientIndex(folder, one, curvature="gram", damping=damping, train_loss=output)
            self.indices.append(index)
            derivatives += self._kept(index, Path(f"{folder}-derivatives"))
        self.derivatives: NDArray[np.float64] = derivatives / len(objectives)

    @property
    def processes(self) -> Processes:
        return self.objective.processes

    def __len__(self) -> int:
        return len(self.indices[0])

    def training(self, data: Any) -> Objective | None:
        return self.indices[0].training(data)

    def stream(
        self,
        test_data: Any,
        training: Objective | None,
        test_loss: Callable[..., Any] | None,
        query_rank: int | None,
        progress: bool | None,
    ) -> Stream:
        data = None if training is None else training.batches.data
        loss = self.output if test_loss is None else test_loss
        streams = [
            index.stream(test_data, index.training(data), loss, query_rank, progress)
            for index in self.indices
        ]
        derivatives = self.derivatives
        if data is not None:
            derivatives = np.mean([self._derivatives(index, data) for index in self.indices], axis=0)
        # Where nothing else is asked, the fall of the output counts.
        weights = (-1 if test_loss is None else 1) / len(streams) * derivatives

        def tiles() -> Iterator[tuple[int, NDArray[Any]]]:
            for found in zip(*(stream.tiles for stream in streams), strict=True):
                column, total = found[0][0], np.asarray(sum(tile for _, tile in found))
                yield column, total * weights[column : column + total.shape[1]].astype(total.dtype)

        residual = max(stream.residual for stream in streams)
        return Stream(streams[0].tests, streams[0].dtype, residual, tiles())

    def _kept(self, index: GradientIndex, folder: Path) -> NDArray[np.float64]:
        """``∂C_i/∂f`` of the training examples, kept beside the index."""
        losses, dtype = self._losses(index, None), np.dtype(np.float64)
        width, processes = index.features.width(losses), self.processes
        depends_on = {
            **fingerprint.of_objective(losses),
            "output": fingerprint.of_function(self.output),
            "projection": repr(index.projection),
        }
        with Store(folder, (1, len(index)), dtype, (1, width), depends_on, processes, _HOLDS) as store:
            for block, own in store.missing(0, 1, windows(losses, width), losses, lambda amount: None):
                first = losses.first + block.first
                rows = index.features.of(losses, block, "training", 1.0)[own]
                store.write(0, first, _ratios(rows, index.rows(first, first + len(rows)))[None])
            return np.array(store.read()[0])

    def _derivatives(self, index: GradientIndex, data: Any) -> NDArray[np.float64]:
        """The same of examples that are not indexed."""
        outputs, losses = index.training(data), self._losses(index, data)
        assert outputs is not None
        width, found = index.features.width(outputs), [np.zeros(0)]
        for one, other in zip(counted_blocks(outputs, width), counted_blocks(losses, width), strict=True):
            rows = index.features.of(outputs, one, "training", 1.0)
            found.append(_ratios(index.features.of(losses, other, "training", 1.0), rows))
        return np.concatenate(found)

    def _losses(self, index: GradientIndex, data: Any) -> Objective:
        assert index.objective is not None
        return without_curvature(index.objective, None, None).training(data)


def _ratios(rows: NDArray[Any], of: NDArray[Any]) -> NDArray[np.float64]:
    """What rows are as multiples of others, in the sense of least squares; 0 of zeros."""
    products, squares = (np.sum(of * other, axis=1, dtype=np.float64) for other in (rows, of))
    return np.divide(products, squares, where=squares > 0, out=np.zeros(len(rows)))

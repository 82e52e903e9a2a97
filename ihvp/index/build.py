"""Projected gradients of all training examples, written once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from ihvp import fingerprint
from ihvp.arguments import check_choice, check_damping, check_instance, check_path
from ihvp.data import Batches, take_examples
from ihvp.errors import InvalidOption, gigabytes
from ihvp.index.features import Features, Recorded
from ihvp.index.gradient_index import CURVATURE, HOLDS, GradientIndex
from ihvp.index.records import IndexDtype, record_dtype
from ihvp.influence.blocks import Block, tile_columns, windows
from ihvp.influence.checks import check_model
from ihvp.influence.store import Store
from ihvp.influence.trained import TrainedModel
from ihvp.influence.workers import over_workers
from ihvp.kronecker import KFAC
from ihvp.objective import Objective
from ihvp.operators import ScalarMatrix
from ihvp.processes import together
from ihvp.projection import Projection
from ihvp.solvers import ClosedForm, inverse

# Numbers of an example where nobody has said how many, and the examples whose time makes a forecast.
_DIM, _TIMED = 1024, 32


@dataclass(frozen=True)
class Forecast:
    """What an index will take, told before it is built.

    Attributes
    ----------
    examples, dim : int
    nbytes : int
        Of the file.
    seconds : float
        At the pace of the first examples, by one process.

    Examples
    --------
    >>> print(Forecast(1_000_000, 1024, 2_052_000_000, 5400.0))
    1,000,000 examples × 1,024 numbers: 2.05 GB, about 90 minutes
    """

    examples: int
    dim: int
    nbytes: int
    seconds: float

    def __str__(self) -> str:
        minutes = self.seconds / 60
        told = f"{minutes:.0f} minutes" if minutes >= 1.5 else f"{self.seconds:.0f} seconds"
        return f"{self.examples:,} examples × {self.dim:,} numbers: {gigabytes(self.nbytes)}, about {told}"


@together
def build_index(
    objective: Objective,
    out: str | Path,
    projection: Projection | None = None,
    dtype: IndexDtype = "float16",
    *,
    curvature: KFAC | None = None,
    damping: float = 0.0,
    train_loss: Callable[..., Any] | None = None,
    version: str | None = None,
    progress: bool | None = None,
) -> GradientIndex:
    r"""Write the projected gradients :math:`R \nabla C_i` of all training examples to a folder.

    After an interruption the same call goes on where it stopped, with any number of processes, and a finished
    index is only opened.

    Parameters
    ----------
    objective : Objective
        The trained model, its loss and its data.
    out : path
        The folder. Each example takes ``dim`` numbers of ``dtype`` there, and four bytes.
    projection : Projection, optional
        By default ``Projection(1024)``, or of as many numbers as there are parameters if these are fewer.
    dtype : {"float16", "bfloat16", "float32", "float64"}
        Of the numbers in the file. In float16 each example has a scale, so that nothing overflows.
    curvature : KFAC or EKFAC, optional
        K: the rows are :math:`R (K + \lambda I)^{-1/2} \nabla C_i`, whose products are estimates of those
        with the inverse. The gradient of each example is formed for it.
    damping : float
        λ ≥ 0, with ``curvature``.
    train_loss : callable, optional
        What goes away with an example, where that is not the whole loss: the loss without the regulariser.
    version, progress
        As for :class:`ihvp.Influence`.

    Raises
    ------
    StoreMismatch
        ``out`` holds the index of another model, other data, another seed or other settings.
    StoreError
        ``out`` cannot be written, is damaged, or another run writes to it.
    InvalidOption
        More numbers than parameters are asked for; ``curvature`` is singular.
    MissingCapability
        "factored": the backend cannot open models.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import ihvp
    >>> x = np.random.default_rng(0).normal(size=(5, 8))
    >>> objective = ihvp.Objective(params=x.mean(axis=0), data=x, grad=lambda w, x: w - x.mean(axis=0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     index = ihvp.build_index(objective, folder, ihvp.Projection(4, "gaussian"))
    ...     len(index), index.dim
    (5, 4)
    """
    model, features, projection = _prepared(
        objective, projection, dtype, curvature, damping, train_loss, version
    )
    check_path("out", out)
    if Path(out).suffix == ".zarr":
        raise InvalidOption("out", out, "a folder of another name: an index is one file of numpy's format")
    model.agree("build_index", str(out), projection, dtype)
    objective.processes.require_no_program(out)
    training = model.training()
    count, width = training.total_examples, features.width(training)
    depends_on = {
        **model.fingerprints(),
        "training loss": fingerprint.of_function(training.loss),
        "projection": json.dumps(asdict(projection)),
        "parts": json.dumps({name: [part.start, part.stop] for name, part in features.parts.items()}),
        "numbers": dtype,
    }
    record = record_dtype(features.map.dim, dtype)
    columns = min(tile_columns(features.map.dim, count), width)
    with Store(out, (1, count), record, (1, columns), depends_on, objective.processes, HOLDS) as store:
        before = training.first
        with objective.processes.track("Index", training.num_examples, progress) as advance:
            wanted = store.missing(0, 1, windows(training, columns), training, advance)
            recorded = Recorded(training.without_data(), features, dtype)
            for block, own, found in over_workers(recorded, wanted):
                store.write(0, before + block.first, found[:, own])
                advance(own.stop - own.start)
        if curvature is not None and objective.processes.rank == 0:
            curvature.save(Path(out) / CURVATURE)
        store.read()
    return GradientIndex(out, objective)


def forecast(
    objective: Objective,
    projection: Projection | None = None,
    dtype: IndexDtype = "float16",
    *,
    curvature: KFAC | None = None,
    damping: float = 0.0,
    train_loss: Callable[..., Any] | None = None,
) -> Forecast:
    """What :func:`ihvp.build_index` will take, from the first examples of the data.

    Parameters
    ----------
    objective, projection, dtype, curvature, damping, train_loss
        As for :func:`ihvp.build_index`.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> x = np.random.default_rng(0).normal(size=(5, 8))
    >>> objective = ihvp.Objective(params=x.mean(axis=0), data=x, grad=lambda w, x: w - x.mean(axis=0))
    >>> ihvp.index.forecast(objective, ihvp.Projection(4)).nbytes
    60
    """
    model, features, _ = _prepared(objective, projection, dtype, curvature, damping, train_loss, None)
    training = model.training()
    batch, count = next(iter(training.batches))
    some = min(count, _TIMED)
    piece = take_examples(batch, 0, some) if some < count else batch
    recorded = Recorded(training.without_data(), features, dtype)
    seconds = []
    for _ in range(2):  # what is done once, such as compilation, is not counted for all
        begin = time.perf_counter()
        recorded(Block(0, [part for part, _ in Batches([piece])], some))
        seconds.append(time.perf_counter() - begin)
    total, record = training.total_examples, record_dtype(features.map.dim, dtype)
    return Forecast(total, features.map.dim, total * record.itemsize, seconds[0] + seconds[1] * total / some)


def _prepared(
    objective: Objective,
    projection: Projection | None,
    dtype: IndexDtype,
    curvature: KFAC | None,
    damping: float,
    train_loss: Callable[..., Any] | None,
    version: str | None,
) -> tuple[TrainedModel, Features, Projection]:
    check_model(objective, train_loss, version)
    check_choice("dtype", dtype, get_args(IndexDtype))
    check_damping(damping)
    if projection is None:
        projection = Projection(min(_DIM, objective.num_params))
    check_instance("projection", projection, Projection, "an ihvp.Projection")
    if curvature is None and damping:
        raise InvalidOption("damping", damping, "0 without a curvature")
    if curvature is not None:
        check_instance("curvature", curvature, KFAC, "an ihvp.KFAC or ihvp.EKFAC, or None")
        if not (curvature.space.matches(objective.space) and curvature.is_at(objective)):
            raise InvalidOption("curvature", curvature, "one made at the parameters that the objective has")
        curvature.require_definite(damping)
    operator = ScalarMatrix(objective.space) if curvature is None else curvature
    model = TrainedModel(
        objective, inverse(operator, damping, ClosedForm()), train_loss, version, anywhere=True
    )
    return model, Features(projection, objective, curvature, damping), projection

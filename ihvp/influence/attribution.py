"""What all methods of attribution share: scores in tiles, in memory, on disk or the best of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ihvp.arguments import check_path
from ihvp.errors import InvalidOption
from ihvp.influence.blocks import tile_columns
from ihvp.influence.scores import Scores, check_k
from ihvp.influence.self_influence import self_scores
from ihvp.influence.store import Store
from ihvp.influence.tiles import Part, Tile, residual_of, terms, tiles
from ihvp.influence.top_k import Running, TopK, Which, check_which
from ihvp.influence.trained import TrainedModel
from ihvp.memory import allocate
from ihvp.processes import together


class Attribution:
    r"""A method whose scores are sums of products of gradients at one or several models.

    .. math:: S_{ji} = \frac1N \sum_c \eta_c\, \nabla L(z_j)^T A_c^{-1} \nabla C_i

    with the gradients at the parameters of model c. A positive score means that example i helps at test point
    j, for each method. ``models`` has the factors η and the models, with what stands for the inverses of A.
    """

    def __init__(self, models: Sequence[tuple[float, TrainedModel]]) -> None:
        self._models = models
        self.objective = models[0][1].objective

    @together
    def scores(
        self,
        test_data: Any,
        train_data: Any = None,
        test_loss: Callable[..., Any] | None = None,
        *,
        out: str | Path | None = None,
        progress: bool | None = None,
    ) -> Scores:
        """The influence of every training example on the loss at every test point, ``(n_test, n_train)``.

        Parameters
        ----------
        test_data
            In the forms of an objective's data, or the :class:`~ihvp.influence.InverseProducts` of some.
        train_data : optional
            The examples to score; by default those of the objective.
        test_loss : callable, optional
            What is asked about, in place of the objective's loss: a loss without regulariser, a margin.
        out : path, optional
            A folder to stream the scores to: ``scores.npy`` in it, or ``scores.zarr`` where the folder's own
            name ends in ``.zarr``. After an interruption the same call goes on where it stopped, with any
            number of processes: all write to one folder (not zarr's), which all of them see.
        progress : bool, optional
            Shows a progress bar; by default in a terminal, after a second.

        Returns
        -------
        Scores
            Row j, column i: the predicted rise of the loss at test point j when example i is removed.

        Raises
        ------
        SolverError
            An inverse product missed its tolerance.
        DataError, LossError
            The loss cannot take the data, or it comes in another order at each pass.
        StoreMismatch
            ``out`` holds the scores of another model, other data or other settings.
        StoreError
            ``out`` cannot be written, is damaged, or another run writes to it.
        TooLarge
            Without ``out``, the scores do not fit in memory.

        Examples
        --------
        >>> import tempfile
        >>> import numpy as np
        >>> import ihvp
        >>> objective = ihvp.Objective(
        ...     params=np.zeros(1), data=np.array([[1.0], [-1.0]]), grad=lambda w, x: w - x.mean(axis=0)
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ihvp.Influence(objective).scores(np.array([[1.0]]), out=f"{folder}/scores").values
        memmap([[ 0.5, -0.5]])
        """
        if out is not None:
            check_path("out", out)
        self._agree("scores", None if out is None else str(out))
        parts = self._parts(test_data, test_loss, train_data, progress)
        model, training, processes = parts[0].model, parts[0].training, parts[0].training.processes
        shape = parts[0].points.count, training.total_examples
        if out is None:
            values = allocate(
                shape,
                model.dtype,
                "The array of all scores",
                "Pass out=… to stream them to a folder, take top_k, or pass fewer test or training points.",
            )
            for row, column, tile in self._tiles(parts, progress):
                values[row : row + tile.shape[0], column : column + tile.shape[1]] = tile
            return Scores(processes.join(values), ("test", "train"), residual_of(parts))
        processes = model.objective.processes
        processes.require_no_program(out)
        if processes.count > 1 and Path(out).suffix == ".zarr":
            expected = "a folder of another name: two processes may have parts of one zarr chunk"
            raise InvalidOption("out", out, expected)
        depends_on = {**terms(parts), **self._settings()}
        chunk = model.rows, tile_columns(training.num_params, training.total_examples)
        with Store(out, shape, model.dtype, chunk, depends_on, processes) as store:
            for row, column, tile in self._tiles(parts, progress, store):
                store.write(row, column, tile)
            return Scores(store.read(), ("test", "train"), residual_of(parts))

    @together
    def top_k(
        self,
        test_data: Any,
        k: int,
        train_data: Any = None,
        test_loss: Callable[..., Any] | None = None,
        *,
        which: Which = "both",
        progress: bool | None = None,
    ) -> TopK:
        """The k training examples with the most influence on each test point; all scores are never held.

        Parameters
        ----------
        test_data, train_data, test_loss, progress
            As for :meth:`ihvp.Influence.scores`.
        k : int
        which : {"both", "helpful", "harmful"}
            The largest magnitudes, the highest scores, or the lowest. Of equal ones the earlier example wins.

        Examples
        --------
        >>> import numpy as np
        >>> import ihvp
        >>> x = np.array([[0.0], [2.0], [4.0]])
        >>> objective = ihvp.Objective(params=x.mean(axis=0), data=x, grad=lambda w, x: w - x.mean(axis=0))
        >>> ihvp.Influence(objective).top_k(np.array([[3.0]]), 1, which="helpful").indices
        array([[2]])
        """
        self._agree("top_k", k, which)
        training = self._models[0][1].training(train_data)
        check_k(k, training.total_examples, "train")
        check_which(which)
        parts = self._parts(test_data, test_loss, train_data, progress)
        running = Running(parts[0].points.count, k, which, parts[0].model.dtype)
        for row, column, tile in self._tiles(parts, progress):
            running.add(row, column, tile)
        return running.among(training.processes, training.counts).result(residual_of(parts))

    @together
    def self_influence(self, data: Any = None, *, progress: bool | None = None) -> Scores:
        r"""The influence of each training example on its own loss, ``(n,)``.

        .. math:: S_{ii} = \frac1N \nabla C_i^T (H + \lambda I)^{-1} \nabla C_i

        Mislabelled examples and outliers have large ones (Koh and Liang 2017, section 5.4). Each one takes a
        solve of its own; where P allows it, ``ihvp.Direct()`` factorises once for all.

        Parameters
        ----------
        data : optional
            The examples; by default those of the objective.
        progress : bool, optional
            As for :meth:`ihvp.Influence.scores`.

        Examples
        --------
        >>> import numpy as np
        >>> import ihvp
        >>> x = np.array([[0.0], [2.0], [4.0]])
        >>> objective = ihvp.Objective(params=x.mean(axis=0), data=x, grad=lambda w, x: w - x.mean(axis=0))
        >>> np.asarray(ihvp.Influence(objective).self_influence()).round(3)
        array([1.333, 0.   , 1.333])
        """
        self._agree("self_influence")
        found = [(factor, self_scores(model, data, progress)) for factor, model in self._models]
        values = sum(factor * np.asarray(scores) for factor, scores in found)
        return Scores(values, ("train",), max(scores.residual for _, scores in found))

    def _agree(self, call: str, *arguments: Any) -> None:
        """Refuse processes that do not make the same call with the same settings."""
        for _, model in self._models:
            model.agree(call, *arguments, self._settings())

    def _settings(self) -> dict[str, str]:
        """What scores depend on beside the models."""
        return {}

    def _parts(
        self, test_data: Any, test_loss: Callable[..., Any] | None, train_data: Any, progress: bool | None
    ) -> list[Part]:
        return [
            Part(model, model.points(test_data, test_loss, progress), model.training(train_data), factor)
            for factor, model in self._models
        ]

    def _tiles(
        self, parts: Sequence[Part], progress: bool | None, store: Store | None = None
    ) -> Iterator[Tile]:
        return tiles(parts, progress, store)

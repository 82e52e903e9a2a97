"""Scores from projected gradients on the disk, for any number of questions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from ihvp import fingerprint
from ihvp.arguments import check_choice, check_damping, check_path
from ihvp.errors import InvalidOption, StoreError, StoreMismatch
from ihvp.index.features import Features
from ihvp.index.gram import Gram
from ihvp.index.records import IndexDtype, decode, unscaled
from ihvp.index.streamed import Stream, Streamed, compressed, share
from ihvp.influence.blocks import counted_blocks
from ihvp.influence.parts import named_scores, scores_by_token
from ihvp.influence.points import Solved
from ihvp.influence.products import InverseProducts
from ihvp.influence.scores import Scores
from ihvp.influence.store import read_store
from ihvp.influence.trained import TrainedModel, without_curvature
from ihvp.kronecker import EKFAC, KFAC
from ihvp.memory import allocate
from ihvp.objective import Objective
from ihvp.processes import Processes, together
from ihvp.projection import Projection

HOLDS = "gradients", "rows", "training examples"
NAME = HOLDS[0]
CURVATURE = "curvature.npz"

# So many numbers are read at once (16 MiB in float32), which stay in the caches of large processors.
_NUMBERS = 1 << 22


class GradientIndex(Streamed):
    r"""Projected gradients of training examples in a folder, as :func:`ihvp.build_index` writes them.

    .. math:: S_{ji} = \frac1N \, (R \nabla L(z_j))^T (G + \lambda I)^{-1} R \nabla C_i

    with G the matrix that ``curvature`` says. The sign and the scale are those of :class:`ihvp.Influence`. A
    question costs the gradients of its test points and one pass over the file, of which little is in memory.

    Parameters
    ----------
    folder : path
    objective : Objective
        The model whose gradients were indexed; its data is not asked for. Without one the index can be looked
        at only.
    curvature : {None, "gram"}
        None: G + λI is left out; an index that was built with a curvature has that one in its rows. "gram":
        the mean of the outer products of the rows, as in TRAK and LoGra.
    damping : float
        λ ≥ 0, with ``"gram"``.
    train_loss : callable, optional
        That of :func:`ihvp.build_index`; asked for where other examples than the indexed ones are scored.

    Raises
    ------
    StoreMismatch
        It is the index of other parameters, or of another model.
    MissingFile, StoreError
        It is not there, damaged, or not finished.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import ihvp
    >>> x = np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 4.0]])
    >>> objective = ihvp.Objective(params=x.mean(axis=0), data=x, grad=lambda w, x: w - x.mean(axis=0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     index = ihvp.build_index(objective, folder, ihvp.Projection(2), dtype="float64")
    ...     index.top_k(np.array([[3.0, 3.0]]), 1).indices
    array([[2]])
    """

    def __init__(
        self,
        folder: str | Path,
        objective: Objective | None = None,
        *,
        curvature: Literal["gram"] | None = None,
        damping: float = 0.0,
        train_loss: Callable[..., Any] | None = None,
    ) -> None:
        check_path("folder", folder)
        if curvature is not None:
            check_choice("curvature", curvature, ("gram",))
        check_damping(damping)
        if damping and curvature is None:
            raise InvalidOption("damping", damping, "0 without a curvature, or curvature='gram'")
        self.folder, self.curvature, self.damping = Path(folder), curvature, float(damping)
        self._about, self._records = read_store(self.folder, NAME)
        try:
            self.projection = Projection(**json.loads(self._about["projection"]))
            self.parts = {name: slice(*ends) for name, ends in json.loads(self._about["parts"]).items()}
            self.dtype: IndexDtype = self._about["numbers"]
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{folder} holds no index; expected the folder of ihvp.build_index.") from error
        self._gram: Gram | None = None
        self.objective = objective
        self._model: TrainedModel | None = None
        if objective is not None:
            self._open(objective, train_loss)

    def _open(self, objective: Objective, train_loss: Callable[..., Any] | None) -> None:
        model = without_curvature(objective, train_loss, None)
        found = fingerprint.of_model(objective)
        wrong = {
            name: (self._about.get(name), value)
            for name, value in found.items()
            if self._about.get(name) != value
        }
        if wrong:
            raise StoreMismatch(str(self.folder), wrong)
        kind: type[KFAC] | None = {"KFAC": KFAC, "EKFAC": EKFAC}.get(self._about["curvature"].split()[0])
        whitened = None if kind is None else kind.load(self.folder / CURVATURE, objective)
        self.features = Features(self.projection, objective, whitened, float(self._about["damping"]))
        if self.features.parts != self.parts:
            parts = json.dumps([self.parts, self.features.parts], default=str)
            raise StoreMismatch(str(self.folder), {"layers": tuple(json.loads(parts))})
        self._model = model

    def __len__(self) -> int:
        return int(self._records.shape[1])

    @property
    def dim(self) -> int:
        """How many numbers an example has."""
        return int(self._records.dtype["values"].shape[0])

    @property
    def nbytes(self) -> int:
        """The size of the file."""
        return int(self._records.nbytes)

    def rows(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Projected gradients, by default of all examples, ``(b, dim)``, in float32 or float64."""
        return decode(self._read(start, len(self) if stop is None else stop), self.dtype)

    def stream(
        self,
        test_data: Any,
        training: Objective | None,
        test_loss: Callable[..., Any] | None,
        query_rank: int | None,
        progress: bool | None,
    ) -> Stream:
        questions, residual = self.questions(test_data, test_loss, progress)
        rows, factors, lost = compressed(questions, query_rank)
        tiles = self.tiles(rows, training, progress)
        if factors is not None:
            tiles = ((column, factors @ tile) for column, tile in tiles)
        return Stream(len(questions), self._scored, max(residual, lost), tiles)

    @overload
    @together
    def scores_by(
        self,
        by: Literal["token"],
        test_data: Any,
        train_data: Any = None,
        test_loss: Callable[..., Any] | None = None,
        *,
        progress: bool | None = None,
    ) -> Scores: ...

    @overload
    @together
    def scores_by(
        self,
        by: Literal["layer"],
        test_data: Any,
        train_data: Any = None,
        test_loss: Callable[..., Any] | None = None,
        *,
        progress: bool | None = None,
    ) -> dict[str, Scores]: ...

    @together
    def scores_by(
        self,
        by: Literal["layer", "token"],
        test_data: Any,
        train_data: Any = None,
        test_loss: Callable[..., Any] | None = None,
        *,
        progress: bool | None = None,
    ) -> dict[str, Scores] | Scores:
        """The scores in parts, one for each layer or token.

        They add up to :meth:`ihvp.GradientIndex.scores`.

        Parameters
        ----------
        by : {"layer", "token"}
            "token": as :meth:`ihvp.Influence.scores_by`, of the examples of ``train_data``, or of the
            objective's, by a pass of the model: an index holds no tokens. Ask for those of ``top_k``.
        test_data, train_data, test_loss, progress
            As for :meth:`ihvp.GradientIndex.scores`.

        Raises
        ------
        InvalidOption
            "layer": the projection mixes the layers, it is not "factored" or "eigen".
        """
        check_choice("by", by, ("layer", "token"))
        if by == "layer" and not self.parts:
            raise InvalidOption("by", by, "an index that keeps the layers apart: Projection(kind='factored')")
        training = self.training(train_data)
        questions, residual = self.questions(test_data, test_loss, progress)
        if by == "token":
            model = self._required()
            # The vectors whose products with gradients are the scores; scores by token divide by N.
            vectors = self.features.pull_back(model.total * questions)
            points = Solved(InverseProducts(vectors, residual, {}), model.objective.space)
            return scores_by_token(
                model, points, model.training() if training is None else training, progress
            )
        shape = len(self.parts), len(questions), self._count(training)
        values = allocate(shape, self._scored, "The scores of all parts", "Pass fewer test points.")
        for column, rows, scale in self._blocks(training, progress):
            for part, place in zip(values, self.parts.values(), strict=True):
                part[:, column : column + len(rows)] = questions[:, place] @ rows[:, place].T * scale
        return named_scores(self.parts, self.among(training).join(values), residual)

    @together
    def self_influence(self, *, progress: bool | None = None) -> Scores:
        """The influence of each indexed example on its own loss, ``(n_train,)``.

        ``progress`` is as for :meth:`ihvp.GradientIndex.scores`.
        """
        values, residual = np.zeros(len(self), self._scored), 0.0
        for start, stop in self._pieces(progress):
            rows = self.rows(start, stop)
            solved, worst = self._solved(rows)
            values[start:stop] = np.sum(rows * solved, axis=1) / len(self)
            residual = max(residual, worst)
        return Scores(self.processes.join(values), ("train",), residual)

    def __repr__(self) -> str:
        kind = f"{self.projection.kind}, dim={self.dim}, {self.dtype}"
        about = f"{len(self):,} examples, {kind}, {self.nbytes:,} bytes"
        return f"{type(self).__name__}({str(self.folder)!r}: {about})"

    @property
    def _scored(self) -> np.dtype[Any]:
        return np.dtype(np.float64 if self.dtype == "float64" else np.float32)

    def questions(
        self, test_data: Any, test_loss: Callable[..., Any] | None, progress: bool | None
    ) -> tuple[NDArray[Any], float]:
        """``1/N (G + λI)⁻¹ R ∇L(z_j)`` as rows ``(n_test, dim)``, and the residual of the inverse."""
        question = self._required().question(test_data, test_loss)
        with self.processes.track("Questions", question.num_examples, progress) as advance:
            parts = []
            for block in counted_blocks(question, self.features.width(question)):
                parts.append(self.features.of(question, block, "test", 0.0))
                advance(block.count)
        rows, residual = self._solved(np.concatenate(parts))
        return (rows / len(self)).astype(self._scored), residual

    def tiles(
        self, questions: NDArray[Any], training: Objective | None, progress: bool | None
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """The first example, and the products of the questions with the examples from it on."""
        for column, rows, scale in self._blocks(training, progress):
            yield column, questions @ rows.T * scale

    def _blocks(
        self, training: Objective | None, progress: bool | None
    ) -> Iterator[tuple[int, NDArray[Any], NDArray[Any] | float]]:
        """The first example, rows from it on, and by what their products are multiplied."""
        if training is not None:
            for block in counted_blocks(training, self.features.width(training)):
                rows = self.features.of(training, block, "training", 1.0)
                yield block.first, rows.astype(self._scored), 1.0
            return
        for start, stop in self._pieces(progress):
            records = self._read(start, stop)
            yield start, unscaled(records, self.dtype), records["scale"] if self.dtype == "float16" else 1.0

    def training(self, data: Any) -> Objective | None:
        """What other examples than the indexed ones are scored by; None without any.

        A StoreMismatch says that their loss is not that of the index.
        """
        if data is None:
            return None
        training = self._required().training(data)
        found, expected = self._about["training loss"], fingerprint.of_function(training.loss)
        if found != expected:
            raise StoreMismatch(str(self.folder), {"training loss": (found, expected)})
        return training

    def _solved(self, rows: NDArray[Any]) -> tuple[NDArray[Any], float]:
        if self.curvature is None:
            return rows, 0.0
        if self._gram is None:
            pieces = (self.rows(start, stop) for start, stop in self._pieces(False))
            self._gram = Gram(pieces, self.dim, len(self), self.processes)
        return self._gram.solve(rows, self.damping)

    def _pieces(self, progress: bool | None) -> Iterator[tuple[int, int]]:
        """The ends of the parts of the index that this process reads."""
        processes = self.processes
        first, last = share(len(self), processes.rank, processes.count)
        step = max(1, _NUMBERS // self.dim)
        with processes.track("Index", last - first, progress) as advance:
            for start in range(first, last, step):
                yield start, min(start + step, last)
                advance(min(step, last - start))

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        # Not through the memory map, whose pages would stay and count as the process's memory.
        dtype = self._records.dtype
        return np.fromfile(
            self.folder / f"{NAME}.npy",
            dtype,
            stop - start,
            offset=self._records.offset + start * dtype.itemsize,
        )

    @property
    def processes(self) -> Processes:
        """Those that share the work."""
        return Processes() if self._model is None else self._model.objective.processes

    def _required(self) -> TrainedModel:
        if self._model is None:
            raise InvalidOption(
                "objective", None, "the objective of the model: GradientIndex(folder, objective)"
            )
        return self._model

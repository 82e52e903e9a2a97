"""Scores from projected gradients on the disk, for any number of questions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ihvp import fingerprint
from ihvp.arguments import check_choice, check_damping, check_instance, check_integer, check_path
from ihvp.errors import InvalidOption, StoreError, StoreMismatch
from ihvp.index.features import Features
from ihvp.index.gram import Gram
from ihvp.index.records import IndexDtype, decode, unscaled
from ihvp.influence.allocation import allocate
from ihvp.influence.blocks import counted_blocks
from ihvp.influence.scores import Scores, check_k
from ihvp.influence.store import read_store
from ihvp.influence.top_k import Running, TopK, Which, check_which
from ihvp.influence.trained import TrainedModel
from ihvp.kronecker import EKFAC, KFAC
from ihvp.objective import Objective
from ihvp.operators import ScalarMatrix
from ihvp.processes import Processes, together
from ihvp.progress import track
from ihvp.projection import Projection
from ihvp.solvers import ClosedForm, inverse

NAME = "gradients"
CURVATURE = "curvature.npz"

# So many numbers are read at once (16 MiB in float32), which stay in the caches of large processors.
_NUMBERS = 1 << 22


class GradientIndex:
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
    ...     index.top_k(np.array([[3.0, 2.0]]), 1).indices
    array([[2]])
    """

    def __init__(
        self,
        folder: str | Path,
        objective: Objective | None = None,
        *,
        curvature: Literal["gram"] | None = None,
        damping: float = 0.0,
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
        self._model: TrainedModel | None = None
        if objective is not None:
            self._open(objective)

    def _open(self, objective: Objective) -> None:
        check_instance("objective", objective, Objective, "an ihvp.Objective")
        model = TrainedModel(
            objective, inverse(ScalarMatrix(objective.space), 0.0, ClosedForm()), None, anywhere=True
        )
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
        self._features = Features(self.projection, objective, whitened, float(self._about["damping"]))
        if self._features.parts != self.parts:
            parts = json.dumps([self.parts, self._features.parts], default=str)
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
        """The projected gradients of some examples, ``(b, dim)``, in float32 or float64.

        Parameters
        ----------
        start, stop : int
            The first example, and the one after the last; by default all.
        """
        return decode(self._read(start, len(self) if stop is None else stop), self.dtype)

    @together
    def scores(
        self,
        test_data: Any,
        train_data: Any = None,
        test_loss: Callable[..., Any] | None = None,
        *,
        query_rank: int | None = None,
        progress: bool | None = None,
    ) -> Scores:
        """The scores of every indexed example at every test point, ``(n_test, n_train)``.

        Parameters
        ----------
        test_data
            In the forms of an objective's data.
        train_data : optional
            Other examples than the indexed ones; their gradients are computed and not kept.
        test_loss : callable, optional
            What is asked about, in place of the objective's loss.
        query_rank : int, optional
            Reads the index with so many combinations of the questions in their place: the leading singular
            vectors of their vectors. ``residual`` is the largest part of a question that this leaves out.
        progress : bool, optional
            Shows a progress bar; by default in a terminal, after a second.

        Raises
        ------
        InvalidOption
            The index was opened without an objective; the damping is too small.
        """
        questions, residual, factors = self._questions(test_data, test_loss, query_rank, progress)
        shape = len(questions if factors is None else factors), self._count(train_data)
        advice = "Take top_k, or pass fewer test points."
        values = allocate(shape, self._scored, "The array of all scores", advice)
        for column, tile in self._tiles(questions, train_data, progress):
            values[:, column : column + tile.shape[1]] = tile if factors is None else factors @ tile
        return Scores(self._processes(train_data).join(values), ("test", "train"), residual)

    @together
    def top_k(
        self,
        test_data: Any,
        k: int,
        train_data: Any = None,
        test_loss: Callable[..., Any] | None = None,
        *,
        which: Which = "both",
        query_rank: int | None = None,
        progress: bool | None = None,
    ) -> TopK:
        """The k examples with the most influence on each test point; all scores are never held.

        Parameters
        ----------
        test_data, train_data, test_loss, query_rank, progress
            As for :meth:`scores`.
        k : int
        which : {"both", "helpful", "harmful"}
            As for :meth:`ihvp.Influence.top_k`.
        """
        check_k(k, self._count(train_data), "train")
        check_which(which)
        questions, residual, factors = self._questions(test_data, test_loss, query_rank, progress)
        running = Running(len(questions if factors is None else factors), k, which, self._scored)
        for column, tile in self._tiles(questions, train_data, progress):
            running.add(0, column, tile if factors is None else factors @ tile)
        processes = self._processes(train_data)
        ends = [_share(self._count(train_data), rank, processes.count) for rank in range(processes.count)]
        return running.among(processes, np.array([stop - start for start, stop in ends])).result(residual)

    @together
    def scores_by(
        self,
        by: Literal["layer"],
        test_data: Any,
        train_data: Any = None,
        test_loss: Callable[..., Any] | None = None,
        *,
        progress: bool | None = None,
    ) -> dict[str, Scores]:
        """The scores in parts, one for each layer, which add up to :meth:`scores`.

        Parameters
        ----------
        by : {"layer"}
        test_data, train_data, test_loss, progress
            As for :meth:`scores`.

        Raises
        ------
        InvalidOption
            The projection mixes the layers: it is not "factored".
        """
        check_choice("by", by, ("layer",))
        if not self.parts:
            raise InvalidOption("by", by, "an index that keeps the layers apart: Projection(kind='factored')")
        questions, residual, _ = self._questions(test_data, test_loss, None, progress)
        shape = len(self.parts), len(questions), self._count(train_data)
        values = allocate(shape, self._scored, "The scores of all parts", "Pass fewer test points.")
        for number, place in enumerate(self.parts.values()):
            masked = np.zeros_like(questions)
            masked[:, place] = questions[:, place]
            for column, tile in self._tiles(masked, train_data, progress):
                values[number, :, column : column + tile.shape[1]] = tile
        values = self._processes(train_data).join(values)
        return {
            name: Scores(part, ("test", "train"), residual)
            for name, part in zip(self.parts, values, strict=True)
        }

    @together
    def self_influence(self, *, progress: bool | None = None) -> Scores:
        """The influence of each indexed example on its own loss, ``(n_train,)``.

        Parameters
        ----------
        progress : bool, optional
            As for :meth:`scores`.
        """
        values, residual = np.zeros(len(self), self._scored), 0.0
        for start, stop in self._pieces(progress):
            rows = self.rows(start, stop)
            solved, worst = self._solved(rows)
            values[start:stop] = np.sum(rows * solved, axis=1) / len(self)
            residual = max(residual, worst)
        return Scores(self._processes(None).join(values), ("train",), residual)

    def __repr__(self) -> str:
        kind = f"{self.projection.kind}, dim={self.dim}, {self.dtype}"
        return f"GradientIndex({str(self.folder)!r}: {len(self):,} examples, {kind}, {self.nbytes:,} bytes)"

    @property
    def _scored(self) -> np.dtype[Any]:
        return np.dtype(np.float64 if self.dtype == "float64" else np.float32)

    def _questions(
        self,
        test_data: Any,
        test_loss: Callable[..., Any] | None,
        query_rank: int | None,
        progress: bool | None,
    ) -> tuple[NDArray[Any], float, NDArray[Any] | None]:
        """``1/N (G + λI)⁻¹ R ∇L(z_j)`` as rows, a residual, and by what their products are to be combined."""
        model = self._required()
        question = model.question(test_data, test_loss)
        width = self._features.width(question)
        with track("Questions", question.num_examples, progress) as advance:
            parts = []
            for block in counted_blocks(question, width):
                parts.append(self._features.of(question, block, "test", 0.0))
                advance(block.count)
        rows, residual = self._solved(np.concatenate(parts))
        rows = (rows / len(self)).astype(self._scored)
        if query_rank is None:
            return rows, residual, None
        check_integer("query_rank", query_rank, 1)
        u, s, vt = np.linalg.svd(rows, full_matrices=False)
        norms = np.linalg.norm(rows, axis=1)
        left = np.linalg.norm(u[:, query_rank:] * s[query_rank:], axis=1)
        lost = np.divide(left, norms, where=norms > 0, out=np.zeros_like(norms)).max(initial=0.0)
        return vt[:query_rank], max(residual, float(lost)), u[:, :query_rank] * s[:query_rank]

    def _solved(self, rows: NDArray[Any]) -> tuple[NDArray[Any], float]:
        if self.curvature is None:
            return rows, 0.0
        if self._gram is None:
            pieces = (self.rows(start, stop) for start, stop in self._pieces(False))
            self._gram = Gram(pieces, self.dim, len(self), self._processes(None))
        return self._gram.solve(rows, self.damping)

    def _tiles(
        self, questions: NDArray[Any], train_data: Any, progress: bool | None
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """The first example, and the products of the questions with the examples from it on."""
        if train_data is not None:
            training = self._required().training(train_data)
            for block in counted_blocks(training, self._features.width(training)):
                rows = self._features.of(training, block, "training", 1.0)
                yield block.first, questions @ rows.T.astype(self._scored)
            return
        for start, stop in self._pieces(progress):
            records = self._read(start, stop)
            tile = questions @ unscaled(records, self.dtype).T
            yield start, tile * records["scale"] if self.dtype == "float16" else tile

    def _pieces(self, progress: bool | None) -> Iterator[tuple[int, int]]:
        """The ends of the parts of the index that this process reads."""
        processes = self._processes(None)
        first, last = _share(len(self), processes.rank, processes.count)
        step = max(1, _NUMBERS // self.dim)
        with track("Index", last - first, progress, processes.rank) as advance:
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

    def _count(self, train_data: Any) -> int:
        return len(self) if train_data is None else self._required().training(train_data).num_examples

    @property
    def processes(self) -> Processes:
        """Those that share the work."""
        return Processes() if self._model is None else self._model.objective.processes

    def _processes(self, train_data: Any) -> Processes:
        return Processes() if train_data is not None else self.processes

    def _required(self) -> TrainedModel:
        if self._model is None:
            raise InvalidOption(
                "objective", None, "the objective of the model: GradientIndex(folder, objective)"
            )
        return self._model


def _share(count: int, rank: int, processes: int) -> tuple[int, int]:
    return count * rank // processes, count * (rank + 1) // processes

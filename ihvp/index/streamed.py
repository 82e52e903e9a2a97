"""Scores that come as a stream over the training examples, each tile for all test points."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp.arguments import check_integer
from ihvp.influence.scores import Scores, check_k
from ihvp.influence.top_k import Running, TopK, Which, check_which
from ihvp.memory import allocate
from ihvp.objective import Objective
from ihvp.processes import Processes, together


@dataclass(frozen=True, eq=False)
class Stream:
    """The first example of a tile and the tile ``(n_test, b)``, one after another."""

    tests: int
    dtype: np.dtype[Any]
    residual: float
    tiles: Iterator[tuple[int, NDArray[Any]]]


class Streamed(ABC):
    """What answers questions from projected gradients."""

    @property
    @abstractmethod
    def processes(self) -> Processes:
        """Those that share the work."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of indexed examples."""

    @abstractmethod
    def training(self, data: Any) -> Objective | None:
        """What other examples than the indexed ones are scored by; None without any."""

    @abstractmethod
    def stream(
        self,
        test_data: Any,
        training: Objective | None,
        test_loss: Callable[..., Any] | None,
        query_rank: int | None,
        progress: bool | None,
    ) -> Stream:
        """The scores of this process's share of the indexed examples, or of all others in ``training``."""

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
            What is asked about, in place of the loss, or of the output, that the class names.
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
        check_integer("query_rank", query_rank, 1, none=True)
        training = self.training(train_data)
        stream = self.stream(test_data, training, test_loss, query_rank, progress)
        shape, advice = (stream.tests, self._count(training)), "Take top_k, or pass fewer test points."
        values = allocate(shape, stream.dtype, "The array of all scores", advice)
        for column, tile in stream.tiles:
            values[:, column : column + tile.shape[1]] = tile
        return Scores(self.among(training).join(values), ("test", "train"), stream.residual)

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
            As for :meth:`ihvp.GradientIndex.scores`.
        k : int
        which : {"both", "helpful", "harmful"}
            As for :meth:`ihvp.Influence.top_k`.
        """
        training = self.training(train_data)
        check_k(k, self._count(training), "train")
        check_which(which)
        check_integer("query_rank", query_rank, 1, none=True)
        stream = self.stream(test_data, training, test_loss, query_rank, progress)
        running = Running(stream.tests, k, which, stream.dtype)
        for column, tile in stream.tiles:
            running.add(0, column, tile)
        processes = self.among(training)
        ranks, count = range(processes.count), self._count(training)
        widths = [np.ptp(share(count, rank, processes.count)) for rank in ranks]
        return running.among(processes, np.array(widths)).result(stream.residual)

    def among(self, training: Objective | None) -> Processes:
        """Those that share the examples to be scored: each has all of the examples that are not indexed."""
        return self.processes if training is None else Processes()

    def _count(self, training: Objective | None) -> int:
        return len(self) if training is None else training.num_examples


def compressed(rows: NDArray[Any], rank: int | None) -> tuple[NDArray[Any], NDArray[Any] | None, float]:
    """Rows as combinations of fewer ones: these, the factors, and the largest part of a row that is lost.

    For a rank of None the rows themselves, without factors.
    """
    if rank is None or rank >= min(rows.shape):
        return rows, None, 0.0
    u, s, vt = np.linalg.svd(rows, full_matrices=False)
    norms, left = np.linalg.norm(rows, axis=1), np.linalg.norm(u[:, rank:] * s[rank:], axis=1)
    lost = np.divide(left, norms, where=norms > 0, out=np.zeros_like(norms))
    return vt[:rank], u[:, :rank] * s[:rank], float(lost.max(initial=0.0))


def share(count: int, rank: int, processes: int) -> tuple[int, int]:
    """The first and the last but one of the examples that one of several processes reads."""
    return count * rank // processes, count * (rank + 1) // processes

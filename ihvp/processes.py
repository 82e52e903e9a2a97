"""The processes that the data of an objective is spread over, and what they tell each other."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import SupportsReduce, Vector
from ihvp.errors import InvalidOption, ProcessesDiffer, ProcessFailed
from ihvp.progress import track

Owner = TypeVar("Owner")
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# What is summed at once (128 MiB in float32).
_NUMBERS = 1 << 25


@dataclass(frozen=True, eq=False)
class Processes:
    """Processes that make the same calls, each with its own part of the data; by default there is one.

    Numbers of examples follow the ranks. Each method is to be called by all processes at once, and returns
    the same in all of them.

    >>> Processes().each(3)
    array([3])
    """

    rank: int = 0  # the number of this process, from 0 on
    count: int = 1
    backend: SupportsReduce | None = None  # what sums over them
    like: Vector = None  # an empty vector of the backend, for its device

    @classmethod
    def of(cls, backend: object, like: Vector) -> Processes:
        """Those of a backend, whose vectors are on the device of ``like``."""
        if not isinstance(backend, SupportsReduce) or backend.place()[1] == 1:
            # One process alone, or processes that run one program of JAX on the devices of all.
            return cls() if getattr(like, "is_fully_addressable", True) else cls(like=like[:0])
        return cls(*backend.place(), backend, like[:0])

    def reduce(self, vector: Vector) -> Vector:
        """The sum of a vector or block of the backend."""
        if self.backend is None:
            return vector
        if self.backend.place() != (self.rank, self.count):
            raise ProcessFailed(None, "the processes are others than when the objective was made")
        return self.backend.reduce(vector)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What one process raises inside ends the others, too: by ProcessFailed, where they wait for it."""
        try:
            yield
        except BaseException as error:
            if self.backend is not None:
                self.backend.tell(error)
            raise

    def track(
        self, what: str, total: int, progress: bool | None
    ) -> AbstractContextManager[Callable[[int], object]]:
        """A progress bar over a known amount of work, of the first process alone; gives what advances it."""
        return track(what, total, progress, self.rank)

    def sum(self, values: NDArray[Any]) -> NDArray[Any]:
        """The sum of numpy arrays of one shape."""
        if self.backend is None:
            return values
        xp, device = array_api_compat.array_namespace(self.like), algebra.device(self.like)
        return algebra.to_numpy(self.reduce(xp.asarray(values.ravel(), device=device))).reshape(values.shape)

    def require_no_program(self, out: Any) -> None:
        """Refuse to write what several processes of one program would all write."""
        if self.one_program:
            raise InvalidOption("out", out, "None, where JAX divides arrays among processes")

    @property
    def one_program(self) -> bool:
        """Whether they run the same on the same data, which XLA divides among them: they count as one."""
        return self.backend is None and self.like is not None

    def each(self, number: float) -> NDArray[Any]:
        """The number of each process, ``(count,)``, in the order of their ranks; integers stay exact."""
        return self._side_by_side(np.asarray(number, np.int64 if isinstance(number, int) else np.float64))

    def agreed(self, number: float) -> float:
        """What the first process has measured: what follows from it is then the same in all of them."""
        if self.backend is None:
            return algebra.agreed(number, self.like)
        return float(self.each(float(number))[0])

    def join(self, values: NDArray[Any]) -> NDArray[Any]:
        """An array in which each process has filled a place of its own, and left zeros elsewhere, filled."""
        if self.count > 1:
            step = max(1, _NUMBERS * len(values) // max(values.size, 1))
            for start in range(0, len(values), step):
                values[start : start + step] = self.sum(values[start : start + step])
        return values

    def require_same(self, digests: Mapping[str, bytes]) -> None:
        """Refuse processes whose digests of 16 bytes differ from those of the first, by name."""
        if self.count == 1:
            return
        mine = np.frombuffer(b"".join(digests.values()), np.int64).reshape(len(digests), 2)
        found = self._side_by_side(mine)
        for number, name in enumerate(digests):
            others = np.flatnonzero(np.any(found[:, number] != found[0, number], axis=1))
            if others.size:
                raise ProcessesDiffer(name, others.tolist())

    def _side_by_side(self, values: NDArray[Any]) -> NDArray[Any]:
        together = np.zeros((self.count, *values.shape), values.dtype)
        together[self.rank] = values
        return self.sum(together)


def together(
    method: Callable[Concatenate[Owner, Arguments], Result],
) -> Callable[Concatenate[Owner, Arguments], Result]:
    """A method of an objective, or of what has one, inside :meth:`Processes.together`."""

    @functools.wraps(method)
    def call(self: Owner, /, *arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        objective: Any = getattr(self, "objective", None) or self
        with objective.processes.together():
            return method(self, *arguments, **options)

    return call

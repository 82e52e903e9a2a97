"""Weights that live inside a framework and can only be set in place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ihvp_numdiff._structure import rebuild

# One for all, because two of these objects may write to the same weights.
_turns = threading.RLock()


@dataclass(frozen=True, eq=False)
class InPlaceWeights:
    """Parameters of a framework whose gradient is always taken at the weights it holds.

    Use it as ``params``. To evaluate the gradient at other weights, those are written, the gradient is
    called, and the original weights are written back bit for bit, also when the gradient raises.

    Parameters
    ----------
    read : callable
        ``read()``: the weights, a numpy array or nested dicts, lists and tuples of them. Views of the
        live memory will do; they are copied.
    write : callable
        ``write(values)``: sets the weights; ``values`` has the structure that ``read`` returns.

    Notes
    -----
    Threads that take gradients take turns, for the weights are there once; nothing else may use them
    meanwhile. If ``write`` itself raises, writing the original
    weights back is tried once; if that fails too, its error says so and has the first as its context.

    Examples
    --------
    A framework that holds one weight array and gives its gradient, here of ``w₀² w₁``:

    >>> import numpy as np
    >>> held = np.array([3.0, 2.0])
    >>> def gradient(params, batch):
    ...     return np.array([2 * held[0] * held[1], held[0] ** 2])
    >>> weights = InPlaceWeights(read=lambda: held, write=lambda values: np.copyto(held, values))
    >>> from ihvp.backend import GradientFunction
    >>> from ihvp_numdiff._backend import NumdiffBackend
    >>> product = NumdiffBackend().hvp(GradientFunction(gradient), weights, None, np.array([1.0, 0.0]))
    >>> product.round(6).tolist(), held.tolist()
    ([4.0, 6.0], [3.0, 2.0])
    """

    read: Callable[[], Any]
    write: Callable[[Any], None]

    def values(self) -> Any:
        """A copy of the weights, in the structure that ``read`` returns."""
        with _turns:
            return rebuild(self.read(), lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf)

    @contextmanager
    def applied(self) -> Iterator[InPlaceWeights]:
        """The live weights, which hold these values already."""
        with _turns:
            yield self


@dataclass(frozen=True, eq=False)
class ShiftedWeights:
    """Values for weights that are set in place, held until a gradient is taken at them."""

    weights: InPlaceWeights  # the live weights
    shifted: Any  # the values, in the structure that weights.read returns

    def values(self) -> Any:
        """The values."""
        return self.shifted

    @contextmanager
    def applied(self) -> Iterator[InPlaceWeights]:
        """The live weights, holding these values inside the block and the original ones after it."""
        with _turns:
            original = self.weights.values()
            try:
                self.weights.write(self.shifted)
                yield self.weights
            finally:
                try:
                    self.weights.write(original)
                except BaseException as error:
                    error.add_note("The original weights could not be written back; they may be changed.")
                    raise

"""What a long computation reports while it runs: a progress bar in a terminal, and the caller's callback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Step:
    """One step of an iterative method, as its callback receives it.

    Attributes
    ----------
    iteration : int
        Steps done so far.
    residual : float
        The largest relative residual over the columns, by the method's own recurrence.
    active : int
        Columns that are still being worked on.
    """

    iteration: int
    residual: float
    active: int


class Monitor:
    """Feeds a progress bar and a callback; a context manager that closes the bar.

    Parameters
    ----------
    description : str
        The bar's label.
    callback : callable, optional
        Called with each :class:`Step`.
    progress : bool, optional
        True shows the bar, False does not; None shows it after a second, in a terminal only.
    """

    def __init__(
        self,
        description: str,
        callback: Callable[[Step], object] | None = None,
        progress: bool | None = None,
    ) -> None:
        self._callback, self._bar = callback, None
        if progress is not False:
            self._bar = _bar(description, progress)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def step(self, step: Step) -> None:
        """Report one step."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"residual {step.residual:.1e}, columns {step.active}", refresh=False)
            self._bar.update()
        if self._callback is not None:
            self._callback(step)


@contextmanager
def track(description: str, total: int, progress: bool | None) -> Iterator[Callable[[int], object]]:
    """A progress bar over a known amount of work, with the time left; yields what advances it.

    Parameters
    ----------
    description : str
        The bar's label.
    total : int
        The amount of work.
    progress : bool, optional
        As for :class:`Monitor`.
    """
    bar = None if progress is False else _bar(description, progress, total=total, unit_scale=True)
    try:
        yield (lambda amount: None) if bar is None else bar.update
    finally:
        if bar is not None:
            bar.close()


def _bar(description: str, progress: bool | None, **options: Any) -> Any:
    if progress is None and not sys.stderr.isatty():
        return None
    from tqdm import tqdm  # loaded only where a bar is shown

    return tqdm(desc=description, unit="it", leave=False, delay=0.0 if progress else 1.0, **options)

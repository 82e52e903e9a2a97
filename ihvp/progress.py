"""What a long computation reports while it runs: a progress bar in a terminal, and the caller's callback."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from ihvp.arguments import check_flag

_MINUTE = 60.0


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

    The callback is called with each :class:`Step`. ``progress`` True shows the bar, False does not; None
    shows it after a second in a terminal, and elsewhere writes a line every minute. Of several processes
    that of rank 0 alone shows it.
    """

    def __init__(
        self,
        description: str,
        callback: Callable[[Step], object] | None = None,
        progress: bool | None = None,
        rank: int = 0,
    ) -> None:
        self._callback, self._bar = callback, _bar(description, progress, rank)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def listens(self) -> bool:
        """Whether anything is to be told."""
        return self._bar is not None or self._callback is not None

    def step(self, step: Step) -> None:
        """Report one step."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"residual {step.residual:.1e}, columns {step.active}", refresh=False)
            self._bar.update()
        if self._callback is not None:
            self._callback(step)


@contextmanager
def track(
    description: str, total: int, progress: bool | None, rank: int = 0
) -> Iterator[Callable[[int], object]]:
    """A progress bar over a known amount of work, with the time left; yields what advances it."""
    bar = _bar(description, progress, rank, total=total, unit_scale=True)
    try:
        yield (lambda amount: None) if bar is None else bar.update
    finally:
        if bar is not None:
            bar.close()


def _bar(description: str, progress: bool | None, rank: int, **options: Any) -> Any:
    check_flag("progress", progress, none=True)
    if progress is False or rank > 0:
        return None
    if not (progress or sys.stderr.isatty()):
        return _Lines(description, options.get("total"))
    from tqdm import tqdm  # loaded only where a bar is shown

    return tqdm(desc=description, unit="it", leave=False, delay=0.0 if progress else 1.0, **options)


class _Lines:
    """A line every minute in the place of a bar, for the file that the output of a long job goes to."""

    def __init__(self, description: str, total: int | None) -> None:
        self._description, self._total = description, total
        self._done, self._postfix = 0, ""
        self._began = self._told = time.monotonic()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        self._postfix = text

    def update(self, amount: int = 1) -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._told < _MINUTE:
            return
        self._told = now
        from tqdm import tqdm

        line = tqdm.format_meter(
            self._done,
            self._total,  # type: ignore[arg-type] # None where it is not known
            now - self._began,
            ncols=0,
            prefix=self._description,
            unit_scale=self._total is not None,
            postfix=self._postfix,
        )
        print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        pass

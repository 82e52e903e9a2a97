"""One row of the table, and a case that measures rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Row:
    """A number that was measured, and the bar that it is held against.

    Attributes
    ----------
    case, framework, device : str
        Where it comes from; filled in by the process that ran it.
    what : str
        The problem.
    ours : str
        Our side, with its unit.
    peer, beside : str
        What it is held against, and what was measured there.
    value : float
        What is held against the bar: mostly the ratio of the two.
    low, high : float, optional
        The bar; both None for a row that is only there to compare.
    rival : bool
        Whether the value is our time over that of another implementation.
    residual, peer_residual : float, optional
        The true residuals of both sides' answers, by the float64 oracle.
    """

    what: str
    ours: str
    peer: str
    beside: str
    value: float
    high: float | None = None
    low: float | None = None
    rival: bool = False
    residual: float | None = None
    peer_residual: float | None = None
    case: str = ""
    framework: str = ""
    device: str = ""

    @property
    def has_bar(self) -> bool:
        """Whether the value is held against anything."""
        return self.high is not None

    @property
    def met(self) -> bool:
        """Whether it is within the bar; a row without one always is."""
        return self.high is None or (self.low or 0.0) <= self.value <= self.high


@dataclass(frozen=True)
class Part:
    """What one process measured: a case in a framework on a device.

    Attributes
    ----------
    when : str
        The day, the machine and the versions.
    took : float
        Seconds.
    """

    case: str
    framework: str
    device: str
    when: str
    took: float
    rows: list[Row]


@dataclass(frozen=True)
class Case:
    """Measurements of one kind.

    Attributes
    ----------
    name, title : str
        As in ``make bench ONLY=name``, and what it measures in words.
    frameworks : dict
        What measures the rows in each framework, ``measure(device)``.
    often : bool
        Whether ``make bench`` measures it also without ``ALL=1``.
    """

    name: str
    title: str
    frameworks: dict[str, Callable[[str], list[Row]]]
    often: bool = True


def seconds(value: float) -> str:
    """A time in the unit that suits it."""
    if value >= 1:
        return f"{value:.3g} s"
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"

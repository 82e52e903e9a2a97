"""How far two quantities agree over trainings, at each of many test points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ihvp.errors import InvalidOption
from ihvp.packages import required

if TYPE_CHECKING:
    import pandas

# Always the same draws: what two methods share cancels in their difference.
_RESAMPLES, _SEED = 200, 0
# Fewer trainings have next to nothing to correlate.
_FEWEST = 5


@dataclass(frozen=True, eq=False)
class Agreement:
    r"""A correlation over trainings at each test point, and its mean over test points.

    The difference of two agreements over the same trainings and test points is one as well: which of two
    methods is better is told far more sharply by it than by the two standard errors.

    Attributes
    ----------
    what : str
        Which correlation it is.
    per_test : ndarray (n_test,)
        NaN where the predictions or the losses do not vary.
    resampled : ndarray (B, n_test)
        The same from B bootstrap samples of the trainings, shared by the test points.

    Examples
    --------
    >>> import numpy as np
    >>> one = Agreement("LDS", np.array([0.5, 0.7]), np.array([[0.6, 0.7], [0.4, 0.7]]))
    >>> print(one)
    LDS 0.600 ± 0.122 (over test points 0.100, over trainings 0.071; 2 test points)
    """

    what: str
    per_test: NDArray[np.float64]
    resampled: NDArray[np.float64]

    @property
    def defined(self) -> NDArray[np.bool_]:
        """At which test points there is a correlation; the others do not count."""
        return ~np.isnan(self.per_test)

    @property
    def value(self) -> float:
        """The mean over test points."""
        return float(self.per_test[self.defined].mean())

    @property
    def over_tests(self) -> float:
        """The standard error from the choice of test points; 0 of a single one."""
        found = self.per_test[self.defined]
        return float(found.std(ddof=1) / np.sqrt(found.size)) if found.size > 1 else 0.0

    @property
    def over_trainings(self) -> float:
        """The standard error from the choice of subsets and the noise of training, by the bootstrap."""
        rows = self.resampled[:, self.defined]
        # Of few trainings a sample may have one alone, which does not vary.
        return float(np.nanmean(rows[~np.isnan(rows).all(axis=1)], axis=1).std(ddof=1))

    @property
    def standard_error(self) -> float:
        """``√(over_tests² + over_trainings²)``, for other test points and other trainings.

        A little more than is due: what trainings do to a single test point is in both.
        """
        return float(np.hypot(self.over_tests, self.over_trainings))

    def __sub__(self, other: Agreement) -> Agreement:
        if not isinstance(other, Agreement):
            return NotImplemented
        if self.resampled.shape != other.resampled.shape:
            found, expected = other.per_test.shape, self.per_test.shape
            raise InvalidOption(
                "The other agreement", found, f"one over the same {expected[0]:,} test points"
            )
        what = f"Difference in {self.what}"
        return Agreement(what, self.per_test - other.per_test, self.resampled - other.resampled)

    def to_pandas(self) -> pandas.Series:
        """A ``Series`` with the correlation at each test point; needs pandas."""
        pandas = required("pandas", "Agreement.to_pandas", "pip install pandas")
        return pandas.Series(
            self.per_test, index=pandas.RangeIndex(len(self.per_test), name="test"), name=self.what
        )

    def plot(self, ax: Any = None, label: str | None = None) -> Any:
        """Draw how test points differ, and return the matplotlib ``Axes``; several may share them."""
        from ihvp import plot

        return plot.agreement(self, ax=ax, label=label)

    def __str__(self) -> str:
        count, all_of = int(self.defined.sum()), len(self.per_test)
        among = f"{count:,} test points" if count == all_of else f"{count:,} of {all_of:,} test points vary"
        return (
            f"{self.what} {self.value:.3f} ± {self.standard_error:.3f} (over test points "
            f"{self.over_tests:.3f}, over trainings {self.over_trainings:.3f}; {among})"
        )


def agreement(
    what: str,
    predicted: NDArray[np.float64],
    losses: NDArray[np.float64],
    rounding: NDArray[np.float64],
    ranks: bool,
) -> Agreement:
    """The correlation of predicted with actual losses, both ``(n_test, m)``, or that of their ranks.

    Predictions that vary by no more than the ``rounding`` of their test point are constant. An InvalidOption
    says that there are too few trainings, or that at no test point both vary.
    """
    tests, count = predicted.shape
    if count < _FEWEST:
        raise InvalidOption(
            "outcomes", f"{count} trainings", f"at least {_FEWEST}; a hundred tell methods apart"
        )
    flat, still = np.ptp(predicted, axis=1) <= rounding, np.ptp(losses, axis=1) == 0
    for option, constant in (("scores", flat), ("losses", still), ("scores and losses", flat | still)):
        if constant.all():
            same = "the same for every subset, at every test point"
            raise InvalidOption(option, same, "what varies at some test point: constants have no correlation")
    drawn = np.random.default_rng(_SEED).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)
    counts = np.concatenate([np.ones((1, count)), drawn])
    found = np.full((len(counts), tests), np.nan)
    for test in np.flatnonzero(~(flat | still)):
        pair = predicted[test], losses[test]
        x, y = (_ranks(values, counts) for values in pair) if ranks else pair
        found[:, test] = _correlations(x, y, counts)
    return Agreement(what, found[0], found[1:])


def _ranks(values: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean rank of each value in samples that have it so many times, ``(B, m)``; one sort for all."""
    order = np.argsort(values)
    first, last = (np.searchsorted(values[order], values, side) for side in ("left", "right"))
    below = np.concatenate([np.zeros((len(counts), 1)), np.cumsum(counts[:, order], axis=1)], axis=1)
    return np.asarray((below[:, first] + below[:, last]) / 2)


def _correlations(
    x: NDArray[np.float64], y: NDArray[np.float64], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Pearson's, where each pair counts so many times, ``(B,)``; NaN of a sample that does not vary."""
    total = counts.sum(axis=1, keepdims=True)
    dx, dy = (z - (counts * z).sum(axis=1, keepdims=True) / total for z in (x, y))
    together = (counts * dx * dy).sum(axis=1)
    sizes = np.sqrt((counts * dx**2).sum(axis=1)) * np.sqrt((counts * dy**2).sum(axis=1))
    found = np.full(len(counts), np.nan)
    np.divide(together, sizes, out=found, where=sizes > 0)
    return found

"""How the linear datamodelling score depends on the damping: a path of dampings from one solve."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.arguments import as_array, check_instance
from ihvp.errors import InvalidOption
from ihvp.evaluate.agreement import Agreement, agreement
from ihvp.evaluate.outcomes import Outcomes
from ihvp.evaluate.retraining import masks_of
from ihvp.influence import Influence
from ihvp.influence.blocks import Block, counted_blocks, rows_at_once, tile_columns
from ihvp.influence.factored import factored_form, layered
from ihvp.influence.gradients import derivatives_along, gradients
from ihvp.influence.points import solve_width
from ihvp.influence.trained import TrainedModel
from ihvp.kronecker.contraction import Contraction
from ihvp.objective import Objective
from ihvp.operators import LinearOperator
from ihvp.packages import required
from ihvp.progress import track
from ihvp.solvers import CG, Solver, solve
from ihvp.solvers.tolerances import relative_tolerance

if TYPE_CHECKING:
    import pandas

_RESIDUAL = 1e-3


@dataclass(frozen=True, eq=False)
class DampingPath:
    """The linear datamodelling score at several dampings.

    Attributes
    ----------
    dampings : ndarray (L,)
        In ascending order.
    agreements : list of Agreement
        One for each of them.

    Examples
    --------
    >>> import numpy as np
    >>> rows = np.array([[0.4, 0.5], [0.5, 0.6], [0.5, 0.58], [0.1, 0.0]])
    >>> lds = [Agreement("LDS", row, np.stack([row - 0.01, row + 0.01])) for row in rows]
    >>> path = DampingPath(np.array([1e-3, 1e-2, 1e-1, 1.0]), lds)
    >>> path.best, path.damping
    (0.01, 0.1)
    """

    dampings: NDArray[np.float64]
    agreements: list[Agreement]

    @property
    def value(self) -> NDArray[np.float64]:
        """The mean over test points, ``(L,)``."""
        return np.array([found.value for found in self.agreements])

    @property
    def standard_error(self) -> NDArray[np.float64]:
        """Of each, ``(L,)``; those of differences are smaller."""
        return np.array([found.standard_error for found in self.agreements])

    @property
    def per_test(self) -> NDArray[np.float64]:
        """``(L, n_test)``."""
        return np.array([found.per_test for found in self.agreements])

    @property
    def best(self) -> float:
        """The damping with the highest score."""
        return float(self.dampings[np.argmax(self.value)])

    @property
    def damping(self) -> float:
        """The largest damping that is not worse than the best by more than one standard error.

        The standard error is that of the difference of the two over the same trainings and test points. Of
        dampings that cannot be told apart the largest is the easiest to solve with, and depends the least on
        small curvature that is estimated badly.
        """
        best = self.agreements[int(np.argmax(self.value))]
        losses = [best - found for found in self.agreements]
        close = [loss.value <= loss.standard_error for loss in losses]
        return float(self.dampings[np.flatnonzero(close)[-1]])

    def to_pandas(self) -> pandas.DataFrame:
        """A ``DataFrame`` with the columns damping, lds and standard_error; needs pandas."""
        pandas = required("pandas", "DampingPath.to_pandas", "pip install pandas")
        columns = {"damping": self.dampings, "lds": self.value, "standard_error": self.standard_error}
        return pandas.DataFrame(columns)

    def plot(self, ax: Any = None, label: str | None = None) -> Any:
        """Draw the path with its standard errors, and return the matplotlib ``Axes``."""
        from ihvp import plot

        return plot.dampings(self, ax=ax, label=label)

    def __str__(self) -> str:
        rows = zip(self.dampings, self.value, self.standard_error, strict=True)
        lines = [f"damping {damping:.3g}: LDS {value:.3f} ± {error:.3f}" for damping, value, error in rows]
        return "\n".join(
            [*lines, f"best: {self.best:.3g}; within a standard error of it up to {self.damping:.3g}"]
        )


def dampings(
    objective: Objective,
    outcomes: Outcomes,
    test_data: Any,
    dampings: Sequence[float],
    curvature: LinearOperator | None = None,
    test_loss: Callable[..., Any] | None = None,
    *,
    solver: Solver | Literal["auto"] | None = None,
    train_loss: Callable[..., Any] | None = None,
    progress: bool | None = None,
) -> DampingPath:
    """The linear datamodelling score of influence functions at several dampings, and which to take.

    All dampings share the solves of CG, whose Krylov space is the same for each of them, the eigenvectors of
    :class:`ihvp.EKFAC`, and one pass over the training data.

    Parameters
    ----------
    objective : Objective
        The trained model, as for :class:`ihvp.Influence`.
    outcomes : Outcomes
        From :func:`retrain` with the same ``test_data`` and ``test_loss``, or your own.
    test_data, test_loss, progress
        As for :meth:`ihvp.Influence.scores`.
    dampings : sequence of float
        Different numbers ≥ 0.
    curvature, train_loss
        As for :class:`ihvp.Influence`, which chooses for the smallest damping where nothing is named.
    solver : Solver or "auto", optional
        By default CG to a relative residual of 1e-3: the ranks of scores do not see what is left, and float32
        has such residuals at small dampings, too.

    Raises
    ------
    SolverError
        A solve failed; of a curvature that is not definite with a damping, IndefiniteCurvature.
    InvalidOption
        The dampings are no different numbers ≥ 0, or the outcomes are of other data.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> x = np.random.default_rng(0).normal(size=(20, 1))
    >>> def loss(w, x):
    ...     return ((w - x) ** 2).mean() / 2
    >>> objective = ihvp.Objective(loss, x.mean(axis=0), x, grad=lambda w, x: w - x.mean(axis=0))
    >>> test = np.array([[3.0], [4.0]])
    >>> def train(kept, seed):
    ...     return x[kept].mean(axis=0)
    >>> outcomes = ihvp.evaluate.retrain(objective, train, test, subsets=30)
    >>> path = ihvp.evaluate.dampings(objective, outcomes, test, [0.1, 1.0])
    >>> bool((path.value > 0.99).all()), path.damping
    (True, 1.0)
    """
    check_instance("outcomes", outcomes, Outcomes, "ihvp.evaluate.Outcomes")
    values = as_array("dampings", dampings).astype(np.float64)
    if values.ndim != 1 or not values.size or not np.all(values >= 0) or len(np.unique(values)) < values.size:
        raise InvalidOption("dampings", dampings, "different numbers ≥ 0")
    masks_of(objective, outcomes.subsets)
    values = np.sort(values)
    model = Influence(objective, float(values[0]), solver, train_loss=train_loss, curvature=curvature)._model
    chosen = model.inverse.solver
    if solver is None and isinstance(chosen, CG):
        chosen = CG(rtol=max(_RESIDUAL, relative_tolerance(None, objective.space)))
    question, training = model.question(test_data, test_loss), model.training()
    subsets, tests = outcomes.losses.shape
    if question.num_examples != tests:
        expected = f"the {tests:,} test points of the outcomes"
        raise InvalidOption("test_data", f"data of {question.num_examples:,} examples", expected)
    left_out, size = ~outcomes.subsets, np.zeros((len(values), tests))
    predicted = np.zeros((len(values), tests, subsets))
    columns = tile_columns(training.num_params, training.num_examples)
    each = training.without_data()
    with track("Dampings", tests * training.num_examples, progress) as advance:
        for asked, products in _queries(model, question, training, values, chosen, progress):
            rows = slice(asked.first, asked.first + asked.count)
            for block in counted_blocks(training, columns):
                tile = products(each, block) / model.total
                predicted[:, rows] += tile @ left_out[:, block.first : block.first + block.count].T
                size[:, rows] += np.abs(tile).sum(axis=2)
                advance(asked.count * block.count)
    rounding = training.num_examples * np.finfo(np.float64).eps * size
    found = [
        agreement("LDS", rises, outcomes.losses.T, limit, ranks=True)
        for rises, limit in zip(predicted, rounding, strict=True)
    ]
    return DampingPath(values, found)


def _queries(
    model: TrainedModel,
    question: Objective,
    training: Objective,
    dampings: NDArray[np.float64],
    solver: Solver,
    progress: bool | None,
) -> Iterator[tuple[Block, Callable[[Objective, Block], NDArray[np.float64]]]]:
    """Blocks of test points, and what gives their products with a block of examples, ``(L, k, b)``."""
    factors = factored_form(model, training, question)
    if factors is not None:
        pairs = question.num_examples * training.num_examples
        contractions = [Contraction(factors, float(damping), pairs) for damping in dampings]
        for asked in counted_blocks(question, model.rows):
            rows = layered(contractions[0], question, asked, "test", power=0)
            solved = [(contraction, contraction.solved(rows)) for contraction in contractions]

            def contracted(each: Objective, block: Block, solved: list[Any] = solved) -> NDArray[np.float64]:
                right = layered(contractions[0], each, block, "training", power=1)
                return np.array([contraction.products(left, right) for contraction, left in solved])

            yield asked, contracted
        return
    operator = model.inverse.operator
    # The solves of all dampings are held together.
    most = max(1, rows_at_once(operator.space.size) // (2 * len(dampings)))
    for asked in counted_blocks(question, min(most, solve_width(model.inverse, question.num_examples))):
        right_sides = gradients(question, asked, "test", power=0).T
        solutions = solve(operator, right_sides, list(map(float, dampings)), solver, progress=progress)
        x = algebra.concatenate([solution.x for solution in solutions])

        def along(each: Objective, block: Block, x: Any = x) -> NDArray[np.float64]:
            found = derivatives_along(each, block, x, "training").T
            return np.asarray(found).reshape(len(dampings), -1, block.count)

        yield asked, along

"""Influence functions of a trained model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.algebra import to_numpy
from ihvp.data import describe_structure
from ihvp.errors import InvalidOption, NotReiterable, UnequalBatches, describe
from ihvp.influence import fingerprint
from ihvp.influence.blocks import blocks, gradients
from ihvp.influence.group import Removal, groups_of
from ihvp.influence.optimum import warn_unless_optimal
from ihvp.influence.points import Points, Solved, Unsolved
from ihvp.influence.products import InverseProducts
from ihvp.influence.scores import Scores, check_k
from ihvp.influence.store import Store
from ihvp.influence.top_k import Running, TopK, Which
from ihvp.objective import Objective
from ihvp.operators import Hessian, LinearOperator
from ihvp.progress import track
from ihvp.solvers import Solver, inverse

# A block of inverse products and a tile of training gradients have at most so many numbers each (128 MiB in
# float32). A solve holds about six blocks.
_NUMBERS = 1 << 25

Tile = tuple[int, int, NDArray[Any]]
"""The number of the first test point, that of the first training example, and their scores ``(k, b)``."""


class Influence:
    r"""What single training examples do to a model's loss elsewhere, without retraining.

    At an optimum of the mean loss C over N examples, removing training example :math:`z_i` raises the loss
    at a test point :math:`z_j` by about

    .. math:: S_{ji} = \frac{1}{N} \nabla L(z_j)^T (H + \lambda I)^{-1} \nabla C_i

    (Koh and Liang, "Understanding black-box predictions via influence functions", ICML 2017, section 2.1).
    A positive score means that the example helps.

    Parameters
    ----------
    objective : Objective
        C: the loss that the model was trained on, its regulariser included, with the trained parameters and
        the training data.
    damping : float
        λ ≥ 0, which makes H positive definite where the model is not at a strict optimum.
    solver : Solver or "auto", optional
        As for :func:`ihvp.solve`.
    train_loss : callable, optional
        What goes away with an example, where that is not the whole loss: the loss without the regulariser.
    curvature : LinearOperator, optional
        In place of the Hessian of C: an ``ihvp.GaussNewton``, an ``ihvp.LowRank``, the Hessian over a part
        of the data.

    Warns
    -----
    NotAtOptimum
        The gradient of C is not small, at the first call.

    Notes
    -----
    Losses are written as the objective's own: ``loss(params, batch)``; ``loss(outputs, batch)`` where it has
    ``predict``; their gradients where it has ``grad``.

    Examples
    --------
    A mean is the optimum of a quadratic loss. Without 4 it would be lower, and further from the test point 3:

    >>> import numpy as np
    >>> import ihvp
    >>> x = np.array([[0.0], [2.0], [4.0]])
    >>> objective = ihvp.Objective(params=x.mean(axis=0), data=x, grad=lambda w, x: w - x.mean(axis=0))
    >>> influence = ihvp.Influence(objective)
    >>> np.asarray(influence.scores(np.array([[3.0]]))).round(3)
    array([[-0.667,  0.   ,  0.667]])
    """

    def __init__(
        self,
        objective: Objective,
        damping: float = 0.0,
        solver: Solver | Literal["auto"] | None = None,
        *,
        train_loss: Callable[..., Any] | None = None,
        curvature: LinearOperator | None = None,
    ) -> None:
        if not isinstance(objective, Objective):
            raise InvalidOption("objective", objective, "an ihvp.Objective")
        self.objective = objective
        self.train_loss = train_loss
        operator = Hessian(objective) if curvature is None else curvature
        self.inverse = inverse(operator, damping, solver)
        if not operator.space.matches(objective.space):
            raise InvalidOption(
                "curvature", curvature, f"an operator on the {objective.num_params:,} parameters"
            )
        self._optimum_checked = False

    def scores(
        self,
        test_data: Any,
        train_data: Any = None,
        test_loss: Callable[..., Any] | None = None,
        *,
        out: str | Path | None = None,
        progress: bool | None = None,
    ) -> Scores:
        """The influence of every training example on the loss at every test point, ``(n_test, n_train)``.

        Parameters
        ----------
        test_data
            In the forms of an objective's data, or the :class:`~ihvp.influence.InverseProducts` of some.
        train_data : optional
            The examples to score; by default those of the objective.
        test_loss : callable, optional
            What is asked about, in place of the objective's loss: a loss without regulariser, a margin.
        out : path, optional
            A folder to stream the scores to: ``scores.npy`` in it, or ``scores.zarr`` where the folder's own
            name ends in ``.zarr``. After an interruption the same call goes on where it stopped.
        progress : bool, optional
            Shows a progress bar; by default in a terminal, after a second.

        Returns
        -------
        Scores
            Row j, column i: the predicted rise of the loss at test point j when example i is removed.

        Raises
        ------
        SolverError
            An inverse product missed its tolerance.
        DataError, LossError
            The loss cannot take the data.
        StoreMismatch
            ``out`` holds the scores of another model, other data or other settings.
        StoreError
            ``out`` cannot be written.

        Examples
        --------
        >>> import tempfile
        >>> import numpy as np
        >>> import ihvp
        >>> objective = ihvp.Objective(
        ...     params=np.zeros(1), data=np.array([[1.0], [-1.0]]), grad=lambda w, x: w - x.mean(axis=0)
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ihvp.Influence(objective).scores(np.array([[1.0]]), out=f"{folder}/scores").values
        memmap([[ 0.5, -0.5]])
        """
        points = self._points(test_data, test_loss, progress)
        training = self._training(train_data)
        shape = points.count, training.num_examples
        if out is None:
            values = np.empty(shape, self._dtype)
            for row, column, tile in self._tiles(points, training, progress):
                values[row : row + tile.shape[0], column : column + tile.shape[1]] = tile
            return Scores(values, ("test", "train"), points.residual)
        with Store(out, shape, self._dtype, (self._rows, self._rows), self._terms(points, training)) as store:
            for row, column, tile in self._tiles(points, training, progress, store):
                store.write(row, column, tile)
            return Scores(store.read(), ("test", "train"), points.residual)

    def top_k(
        self,
        test_data: Any,
        k: int,
        train_data: Any = None,
        test_loss: Callable[..., Any] | None = None,
        *,
        which: Which = "both",
        progress: bool | None = None,
    ) -> TopK:
        """The k training examples with the most influence on each test point; all scores are never held.

        Parameters
        ----------
        test_data, train_data, test_loss, progress
            As for :meth:`scores`.
        k : int
        which : {"both", "helpful", "harmful"}
            The largest magnitudes, the highest scores, or the lowest. Of equal ones the earlier example wins.

        Examples
        --------
        >>> import numpy as np
        >>> import ihvp
        >>> x = np.array([[0.0], [2.0], [4.0]])
        >>> objective = ihvp.Objective(params=x.mean(axis=0), data=x, grad=lambda w, x: w - x.mean(axis=0))
        >>> ihvp.Influence(objective).top_k(np.array([[3.0]]), 1, which="helpful").indices
        array([[2]])
        """
        points = self._points(test_data, test_loss, progress)
        training = self._training(train_data)
        check_k(k, training.num_examples, "train")
        running = Running(points.count, k, self._dtype, which)
        for row, column, tile in self._tiles(points, training, progress):
            running.add(row, column, tile)
        return TopK(np.stack(running.indices), np.stack(running.scores), which, points.residual)

    def self_influence(self, data: Any = None, *, progress: bool | None = None) -> Scores:
        r"""The influence of each training example on its own loss, ``(n,)``.

        .. math:: S_{ii} = \frac1N \nabla C_i^T (H + \lambda I)^{-1} \nabla C_i

        Mislabelled examples and outliers have large ones (Koh and Liang 2017, section 5.4). Each one takes a
        solve of its own; where P allows it, ``ihvp.Direct()`` factorises once for all.

        Parameters
        ----------
        data : optional
            The examples; by default those of the objective.
        progress : bool, optional
            As for :meth:`scores`.

        Examples
        --------
        >>> import numpy as np
        >>> import ihvp
        >>> x = np.array([[0.0], [2.0], [4.0]])
        >>> objective = ihvp.Objective(params=x.mean(axis=0), data=x, grad=lambda w, x: w - x.mean(axis=0))
        >>> np.asarray(ihvp.Influence(objective).self_influence()).round(3)
        array([1.333, 0.   , 1.333])
        """
        self._check_optimum()
        training = self._training(data)
        values, residual = np.empty(training.num_examples, self._dtype), 0.0
        with track("Self-influence", len(values), progress) as advance:
            # A solve holds several blocks of the size of the gradients.
            for block in blocks(training.batches, max(1, self._rows // 8)):
                columns = gradients(training, block, "training").T
                solution = self.inverse.solve(columns, progress=False)
                products = algebra.dots(columns, solution.x) / self._total
                values[block.first : block.first + block.count] = products
                residual = max(residual, float(np.max(solution.residual)))
                advance(block.count)
        return Scores(values, ("train",), residual)

    def group(
        self,
        indices: Any,
        test_data: Any,
        test_loss: Callable[..., Any] | None = None,
        *,
        second_order: bool = False,
        progress: bool | None = None,
    ) -> Scores:
        """The predicted rise of the loss at test points when training examples are removed together.

        Parameters
        ----------
        indices : sequence of int, or of such sequences
            The numbers of the examples in a group, or several groups.
        test_data, test_loss, progress
            As for :meth:`scores`.
        second_order : bool
            Whether to take a Newton step on what remains in place of the sum of single scores: one more solve
            for each group, with the curvature of the remaining examples. Also of use for single examples, as
            ``[[i] for i in …]``: it accounts for their leverage.

        Returns
        -------
        Scores
            ``(n_test,)`` for one group, ``(n_test, n_groups)`` for several.

        Examples
        --------
        Removing 4 from a mean of 0, 2, 4 moves it to 1, where a quadratic loss at 3 has slope −2:

        >>> import numpy as np
        >>> import ihvp
        >>> x = np.array([[0.0], [2.0], [4.0]])
        >>> objective = ihvp.Objective(params=x.mean(axis=0), data=x, grad=lambda w, x: w - x.mean(axis=0))
        >>> influence = ihvp.Influence(objective)
        >>> np.asarray(influence.group([2], np.array([[3.0]]), second_order=True)).round(6)
        array([1.])
        """
        training = self._training(None)
        groups, several = groups_of(indices, training.num_examples)
        removal = Removal(training, self.inverse, self._total)
        if second_order:
            changes, residual = removal.newton_steps(groups, progress)
            question = self._question(test_data, test_loss)
            slopes = (gradients(question, block, "test").T for block in blocks(question.batches, self._rows))
            values = np.concatenate([algebra.gram(rows, changes) for rows in slopes])
        else:
            points = self._points(test_data, test_loss, progress)
            changes = removal.gradients(groups)
            values = np.concatenate([algebra.gram(x, changes) for _, x in points.blocks(self._rows)])
            residual = points.residual
        values = values.astype(self._dtype)
        return Scores(values if several else values[:, 0], ("test", "group")[: 1 + several], residual)

    def of_new_points(
        self,
        data: Any,
        test_data: Any,
        test_loss: Callable[..., Any] | None = None,
        *,
        progress: bool | None = None,
    ) -> Scores:
        """What examples would do that are not in the training data, ``(n_test, n_new)``.

        Row j, column i: the predicted fall of the loss at test point j when example i is added to the
        training data with weight 1/N. As with :meth:`scores`, a positive one means that the example helps.

        Parameters
        ----------
        data
            The new examples, in the forms of an objective's data.
        test_data, test_loss, progress
            As for :meth:`scores`.
        """
        return self.scores(test_data, data, test_loss, progress=progress)

    def inverse_products(
        self, test_data: Any, test_loss: Callable[..., Any] | None = None, *, progress: bool | None = None
    ) -> InverseProducts:
        """The inverse products ``(H + λI)⁻¹ ∇L(z_j)``, to be kept and passed in the place of ``test_data``.

        Parameters
        ----------
        test_data, test_loss, progress
            As for :meth:`scores`.

        Examples
        --------
        >>> import numpy as np
        >>> import ihvp
        >>> x = np.array([[0.0], [2.0], [4.0]])
        >>> objective = ihvp.Objective(params=x.mean(axis=0), data=x, grad=lambda w, x: w - x.mean(axis=0))
        >>> influence = ihvp.Influence(objective)
        >>> products = influence.inverse_products(np.array([[3.0]]))
        >>> np.asarray(influence.scores(products, np.array([[5.0]]))).round(6)
        array([[1.]])
        """
        points = Unsolved(self._question(test_data, test_loss), self.inverse, progress)
        vectors = [to_numpy(x.T) for _, x in points.blocks(self._rows)]
        return InverseProducts(np.concatenate(vectors), points.residual, self._model)

    def _tiles(
        self, points: Points, training: Objective, progress: bool | None, store: Store | None = None
    ) -> Iterator[Tile]:
        """The scores, tile by tile; of a store, those that it lacks."""
        with track("Influence", points.count * training.num_examples, progress) as advance:
            for row, x in points.blocks(self._rows, store):
                seen = 0
                for block in blocks(training.batches, self._rows):
                    seen += block.count
                    if store is None or (row, block.first) not in store.done:
                        rows = gradients(training, block, "training")
                        # The transpose of gradients (P, b) times products (P, k).
                        tile = algebra.gram(rows.T, x).T / self._total
                        yield row, block.first, tile.astype(self._dtype)
                    advance(block.count * x.shape[1])
                if seen != training.num_examples:
                    raise NotReiterable(describe(training.batches.data))

    def _points(self, test_data: Any, test_loss: Callable[..., Any] | None, progress: bool | None) -> Points:
        if not isinstance(test_data, InverseProducts):
            return Unsolved(self._question(test_data, test_loss), self.inverse, progress)
        if test_loss is not None:
            raise InvalidOption(
                "test_loss", test_loss, "None with InverseProducts, which have their loss in them"
            )
        if test_data.model != self._model:
            raise InvalidOption(
                "test_data",
                test_data,
                "inverse products of these parameters with this damping; solve them again",
            )
        return Solved(test_data, self.objective.space)

    def _question(self, test_data: Any, test_loss: Callable[..., Any] | None) -> Objective:
        """The test loss over the test data."""
        self._check_optimum()
        question = self.objective.on(test_data, loss=test_loss)
        if test_loss is None:
            found, expected = (
                describe_structure(next(iter(batches))[0])
                for batches in (question.batches, self.objective.batches)
            )
            if found != expected:
                raise UnequalBatches(
                    f"A batch of the test data is {found}; expected {expected}, as in training, whose loss "
                    "is asked for. Bring it into that form, or pass test_loss=…."
                )
        return question

    def _training(self, data: Any) -> Objective:
        """What goes away with an example, over the examples to score."""
        return self.objective.on(self.objective.batches.data if data is None else data, loss=self.train_loss)

    def _check_optimum(self) -> None:
        if not self._optimum_checked:
            self._optimum_checked = True
            warn_unless_optimal(self.objective, stacklevel=4)

    @property
    def _rows(self) -> int:
        return max(1, _NUMBERS // self.objective.num_params)

    @property
    def _dtype(self) -> np.dtype[Any]:
        dtype = to_numpy(self.objective.space.zeros()[:0]).dtype
        # numpy does not count with bfloat16.
        return dtype if dtype.kind == "f" else np.dtype(np.float32)

    @property
    def _total(self) -> int:
        return self.objective.total_examples

    @property
    def _model(self) -> str:
        """What an inverse product depends on besides its test point."""
        objective = self.objective
        flat = fingerprint.of_vector(objective.backend.flatten(objective.params))
        return f"{flat} {fingerprint.of_function(objective.loss)} {self.inverse.damping!r}"

    def _terms(self, points: Points, training: Objective) -> dict[str, str]:
        """What the scores depend on, under the names by which an error tells them apart."""
        objective = self.objective
        return {
            "parameters": fingerprint.of_vector(objective.backend.flatten(objective.params)),
            "loss": fingerprint.of_function(objective.loss),
            "training loss": fingerprint.of_function(training.loss),
            "training data": fingerprint.of_data(objective.batches),
            "scored data": fingerprint.of_data(training.batches),
            "test data and loss": points.fingerprint(),
            "curvature": type(self.inverse.operator).__name__,
            "damping": repr(self.inverse.damping),
            "solver": repr(self.inverse.solver),
            "backend": type(objective.backend).__name__,
        }

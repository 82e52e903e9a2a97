"""Influence functions of a trained model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.data import describe_structure
from ihvp.errors import InvalidOption, UnequalBatches
from ihvp.influence import fingerprint
from ihvp.influence.blocks import derivatives_along, gradients
from ihvp.influence.group import Removal, groups_of
from ihvp.influence.inputs import influence_on_inputs
from ihvp.influence.optimum import warn_unless_optimal
from ihvp.influence.order import check_order, counted_blocks
from ihvp.influence.points import Points, Solved, Unsolved, rows_of, solve_columns
from ihvp.influence.products import InverseProducts
from ihvp.influence.scores import Scores, check_k
from ihvp.influence.store import Store
from ihvp.influence.top_k import Running, TopK, Which, check_which
from ihvp.influence.values import check_values
from ihvp.objective import Objective
from ihvp.operators import Hessian, LinearOperator
from ihvp.progress import track
from ihvp.solvers import Solver, inverse

# A block of inverse products, a block of training gradients and their tile of scores have at most so many
# numbers each (128 MiB in float32). A solve holds about six blocks.
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
        if not isinstance(operator, LinearOperator) or not operator.space.matches(objective.space):
            raise InvalidOption(
                "curvature",
                curvature,
                f"a LinearOperator on the {objective.num_params:,} parameters, of their dtype and device",
            )
        self.inverse = inverse(operator, damping, solver)
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
            The loss cannot take the data, or it comes in another order at each pass.
        StoreMismatch
            ``out`` holds the scores of another model, other data or other settings.
        StoreError
            ``out`` cannot be written, or another run writes to it.

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
        terms = self._terms(points, training, train_data is None)
        with Store(out, shape, self._dtype, (self._rows, self._rows), terms) as store:
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
        training = self._training(train_data)
        check_k(k, training.num_examples, "train")
        check_which(which)
        points = self._points(test_data, test_loss, progress)
        running = Running(points.count, k, which)
        for row, column, tile in self._tiles(points, training, progress):
            running.add(row, column, tile)
        return running.result(points.residual)

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
            for block in counted_blocks(training, max(1, self._rows // 8)):
                columns = gradients(training, block, "training").T
                x, largest = solve_columns(self.inverse, columns, progress=False)
                values[block.first : block.first + block.count] = algebra.dots(columns, x) / self._total
                residual = max(residual, largest)
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
        Removing 4 moves the mean of 0, 2 and 4 from 2 to 1. At 2 the loss of the point 3 has the slope −1:

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
            question = self._question(test_data, test_loss)
            changes, residual = removal.newton_steps(groups, progress)
            slopes = (gradients(question, block, "test").T for block in counted_blocks(question, self._rows))
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

    def on_inputs(
        self,
        test_data: Any,
        train_data: Any = None,
        test_loss: Callable[..., Any] | None = None,
        *,
        progress: bool | None = None,
    ) -> Any:
        r"""The derivatives of the scores by the training examples: which pixels the influence rests on.

        .. math:: \frac{\partial S_{ji}}{\partial x_i}
            = \frac1N \nabla L(z_j)^T (H + \lambda I)^{-1} \frac{\partial}{\partial x_i} \nabla C_i

        at fixed H. After training with :math:`x_i + \delta` in the place of :math:`x_i`, for a small δ, the
        loss at test point j is lower by about :math:`\delta^T \partial S_{ji} / \partial x_i`, which is −1/N
        times :math:`I_{pert,loss}` of Koh and Liang 2017, section 2.2.

        Parameters
        ----------
        test_data, train_data, test_loss, progress
            As for :meth:`scores`.

        Returns
        -------
        structure of a batch
            That of the training data. In the place of an array ``(B, *shape)`` of floating numbers is a numpy
            array ``(n_test, n_train, *shape)``; in the place of everything else is None.

        Raises
        ------
        DataError
            The training data holds no array of floating numbers.

        Notes
        -----
        With numdiff they are central differences, which take two gradients of every example for each of its
        numbers and are good to about :math:`10 \varepsilon^{2/3}` of the gradients.

        Examples
        --------
        The mean 2 moves by δ/3 with each of three numbers, where the loss at 3 has the slope −1:

        >>> import numpy as np
        >>> import ihvp
        >>> x = np.array([[0.0], [2.0], [4.0]])
        >>> objective = ihvp.Objective(params=x.mean(axis=0), data=x, grad=lambda w, x: w - x.mean(axis=0))
        >>> ihvp.Influence(objective).on_inputs(np.array([[3.0]])).round(6)
        array([[[0.333333],
                [0.333333],
                [0.333333]]])
        """
        points = self._points(test_data, test_loss, progress)
        training = self._training(train_data)
        scale = 1 / self._total
        return influence_on_inputs(points, training, scale, _NUMBERS, self._dtype, progress)

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
        vectors = [rows_of(x) for _, x in points.blocks(self._rows)]
        return InverseProducts(np.concatenate(vectors), points.residual, self._model)

    def _tiles(
        self, points: Points, training: Objective, progress: bool | None, store: Store | None = None
    ) -> Iterator[Tile]:
        """The scores, tile by tile; of a store, those that it lacks."""
        with track("Influence", points.count * training.num_examples, progress) as advance:
            for row, x in points.blocks(self._rows, store):
                for block in counted_blocks(training, self._rows):
                    if store is None or (row, block.first, x.shape[1], block.count) not in store.done:
                        tile = derivatives_along(training, block, x, "training").T / self._total
                        yield row, block.first, tile.astype(self._dtype)
                    advance(block.count * x.shape[1])

    def _points(self, test_data: Any, test_loss: Callable[..., Any] | None, progress: bool | None) -> Points:
        if not isinstance(test_data, InverseProducts):
            return Unsolved(self._question(test_data, test_loss), self.inverse, progress)
        if test_loss is not None:
            raise InvalidOption(
                "test_loss", test_loss, "None with InverseProducts, which have their loss in them"
            )
        found, expected = test_data.model, self._model
        differing = [name for name in expected if found.get(name) != expected[name]]
        if differing:
            raise InvalidOption(
                "test_data",
                test_data,
                f"inverse products of this model; these have another {', another '.join(differing)}",
            )
        self._check_optimum()
        return Solved(test_data, self.objective.space)

    def _question(self, test_data: Any, test_loss: Callable[..., Any] | None) -> Objective:
        """The test loss over the test data."""
        self._check_optimum()
        question = self.objective.on(test_data, loss=test_loss)
        check_order(question.batches, "test")
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
        check_values(question, self._rows, "test")
        return question

    def _training(self, data: Any) -> Objective:
        """What goes away with an example, over the examples to score."""
        training = self.objective.on(self.objective.batches.data if data is None else data, self.train_loss)
        check_order(training.batches, "training")
        if data is not None:
            check_values(training, self._rows, "training")
        return training

    def _check_optimum(self) -> None:
        if not self._optimum_checked:
            warn_unless_optimal(self.objective)
            self._optimum_checked = True

    @property
    def _rows(self) -> int:
        """How many examples make a block, whose tiles of scores are square."""
        return max(1, min(_NUMBERS // self.objective.num_params, math.isqrt(_NUMBERS)))

    @property
    def _dtype(self) -> np.dtype[Any]:
        # Half precision ends at 65,504, and numpy does not count with bfloat16.
        return np.dtype(np.float64 if self.objective.space.eps < 1e-10 else np.float32)

    @property
    def _total(self) -> int:
        return self.objective.total_examples

    @property
    def _model(self) -> dict[str, str]:
        """What an inverse product depends on besides its test point, with the names that errors use."""
        return {
            **fingerprint.of_objective(self.objective),
            "curvature": fingerprint.of_operator(self.inverse.operator, self.objective),
            "damping": repr(self.inverse.damping),
        }

    def _terms(self, points: Points, training: Objective, all_training: bool) -> dict[str, str]:
        """What scores depend on, with the names that errors use."""
        model = self._model
        scored = model["training data"] if all_training else fingerprint.of_data(training.batches)
        return {
            **model,
            "solver": repr(self.inverse.solver),
            "training loss": fingerprint.of_function(training.loss),
            "scored data": scored,
            **points.fingerprints(),
        }

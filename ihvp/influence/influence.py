"""Influence functions of a trained model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

from ihvp.arguments import check_choice
from ihvp.errors import InvalidOption
from ihvp.influence.attribution import Attribution
from ihvp.influence.checks import check_model
from ihvp.influence.group import removal_scores
from ihvp.influence.inputs import influence_on_inputs
from ihvp.influence.parts import scores_by_token, scores_in_parts
from ihvp.influence.points import Unsolved, rows_of
from ihvp.influence.products import InverseProducts
from ihvp.influence.scores import Scores
from ihvp.influence.trained import TrainedModel
from ihvp.memory import allocate
from ihvp.objective import Objective
from ihvp.objective.restricted import parts_of
from ihvp.operators import Hessian, LinearOperator
from ihvp.processes import together
from ihvp.solvers import Solver, inverse
from ihvp.solvers.solve import Inverse


class Influence(Attribution):
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
        of the data. Where neither this nor a solver is named, and the Hessian of an objective with
        ``predict`` proves indefinite in a few Lanczos steps, it is its Gauss–Newton matrix.
    version : str, optional
        Of what the results depend on and the library cannot see: the code of packages, files, settings of
        other modules. What was kept with ``out=`` or as inverse products under another is refused.

    Warns
    -----
    NotAtOptimum
        The gradient of C is not small, at the first call.
    IndefiniteHessian
        The Gauss–Newton matrix takes the place of the Hessian, at the first call.

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
        version: str | None = None,
    ) -> None:
        check_model(objective, train_loss, version)
        operator = Hessian(objective) if curvature is None else curvature
        if not isinstance(operator, LinearOperator) or not operator.space.matches(objective.space):
            raise InvalidOption(
                "curvature",
                curvature,
                f"a LinearOperator on the {objective.num_params:,} parameters, of their dtype and device",
            )
        self.objective, self.train_loss = objective, train_loss
        self._model = TrainedModel(
            objective,
            inverse(operator, damping, solver),
            train_loss,
            version,
            chosen=curvature is not None or solver is not None,
        )
        super().__init__([(1.0, self._model)])

    @property
    def inverse(self) -> Inverse:
        """``(H + λI)⁻¹``."""
        return self._model.inverse

    @overload
    @together
    def scores_by(
        self,
        by: Literal["token"],
        test_data: Any,
        train_data: Any = None,
        test_loss: Callable[..., Any] | None = None,
        *,
        progress: bool | None = None,
    ) -> Scores: ...

    @overload
    @together
    def scores_by(
        self,
        by: Literal["layer", "parameter"],
        test_data: Any,
        train_data: Any = None,
        test_loss: Callable[..., Any] | None = None,
        *,
        progress: bool | None = None,
    ) -> dict[str, Scores]: ...

    @together
    def scores_by(
        self,
        by: Literal["layer", "parameter", "token"],
        test_data: Any,
        train_data: Any = None,
        test_loss: Callable[..., Any] | None = None,
        *,
        progress: bool | None = None,
    ) -> dict[str, Scores] | Scores:
        r"""The scores in parts: in which part of the model, or in which tokens, an influence is.

        .. math:: S_{ji} = \sum_b \frac1N \langle x_j^{(b)}, \nabla C_i^{(b)} \rangle
            = \sum_{t,v} \frac1N \frac{\partial C_i}{\partial o_{itv}} (J x_j)_{itv}, \qquad
            x_j = (H + \lambda I)^{-1} \nabla L(z_j)

        with the entries :math:`(b)` of each part; or with the outputs :math:`o_i` of example i, their tokens
        t, and their Jacobian J. The parts add up to :meth:`ihvp.Influence.scores`.

        Parameters
        ----------
        by : {"layer", "parameter", "token"}
            Tokens are what the second axis of the outputs of ``predict`` counts, after the examples. Those
            that the loss leaves out, as padding or a prompt, have the part 0.
        test_data, train_data, test_loss, progress
            As for :meth:`ihvp.Influence.scores`.

        Returns
        -------
        dict of str to Scores
            By the names of :attr:`ihvp.Objective.blocks`, or their parts up to the last ``.`` or ``/``.
        Scores (n_test, n_train, n_tokens)
            By token. Batches of shorter texts than others are filled up with zeros.

        Raises
        ------
        MissingCapability
            The backend does not name its parameters; or it cannot open a model, as numdiff.
        InvalidOption
            The objective has no ``predict``, or its outputs have no second axis.

        Examples
        --------
        >>> import numpy as np
        >>> import ihvp
        >>> x = np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 4.0]])
        >>> def grad(w, x):
        ...     return {"a": w["a"] - x[:, :1].mean(axis=0), "b": w["b"] - x[:, 1:].mean(axis=0)}
        >>> objective = ihvp.Objective(params={"a": np.full(1, 2.0), "b": np.full(1, 2.0)}, data=x, grad=grad)
        >>> parts = ihvp.Influence(objective).scores_by("parameter", np.array([[3.0, 3.0]]))
        >>> {name: np.asarray(scores).round(3).tolist() for name, scores in parts.items()}
        {'a': [[-0.667, 0.0, 0.667]], 'b': [[-0.333, -0.333, 0.667]]}
        """
        self._model.agree("scores_by", by)
        check_choice("by", by, ("layer", "parameter", "token"))
        parts = {} if by == "token" else parts_of(self.objective.blocks, by)
        points = self._model.points(test_data, test_loss, progress)
        training = self._model.training(train_data)
        if by == "token":
            return scores_by_token(self._model, points, training, progress)
        return scores_in_parts(self._model, points, training, parts, progress)

    @together
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
            As for :meth:`ihvp.Influence.scores`.
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
        self._model.agree("group", indices, second_order)
        return removal_scores(self._model, indices, test_data, test_loss, second_order, progress)

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
        training data with weight 1/N. As with :meth:`ihvp.Influence.scores`, a positive one means that the
        example helps.

        Parameters
        ----------
        data
            The new examples, in the forms of an objective's data.
        test_data, test_loss, progress
            As for :meth:`ihvp.Influence.scores`.
        """
        return self.scores(test_data, data, test_loss, progress=progress)

    @together
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
            As for :meth:`ihvp.Influence.scores`.

        Returns
        -------
        structure of a batch
            That of the training data. In the place of an array ``(B, *shape)`` of floating numbers is a numpy
            array ``(n_test, n_train, *shape)``; in the place of everything else is None, and of what the
            objective's weights are made of, which are fixed.

        Raises
        ------
        DataError
            The training data holds no array of floating numbers.

        Notes
        -----
        With numdiff, also over a model of another framework, they are central differences, which take two
        gradients of every example for each of its numbers and are good to about
        :math:`10 \varepsilon^{2/3}` of the gradients.

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
        self._model.agree("on_inputs")
        points = self._model.points(test_data, test_loss, progress)
        return influence_on_inputs(self._model, points, self._model.training(train_data), progress)

    @together
    def inverse_products(
        self, test_data: Any, test_loss: Callable[..., Any] | None = None, *, progress: bool | None = None
    ) -> InverseProducts:
        """The inverse products ``(H + λI)⁻¹ ∇L(z_j)``, to be kept and passed in the place of ``test_data``.

        Parameters
        ----------
        test_data, test_loss, progress
            As for :meth:`ihvp.Influence.scores`.

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
        self._model.agree("inverse_products")
        points = Unsolved(self._model.question(test_data, test_loss), self.inverse, progress)
        vectors = allocate(
            (points.count, self.objective.num_params),
            self._model.dtype,
            "The array of all inverse products",
            "Pass fewer test points at a time, or take scores or top_k, which hold a block of them.",
        )
        for row, x in points.blocks(self._model.rows):
            vectors[row : row + x.shape[1]] = rows_of(x)
        return InverseProducts(vectors, points.residual, self._model.fingerprints())

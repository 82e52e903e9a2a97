"""The objective: a loss, its parameters and its data, as one function of the parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from inspect import isroutine
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp._inference import create_backend
from ihvp.arguments import check_choice, check_flag, check_function, naming
from ihvp.backend import (
    Batch,
    CurvatureBackend,
    GradientFunction,
    OutputLoss,
    Params,
    Predict,
    SupportsValue,
    Vector,
)
from ihvp.data import Batches, count_examples, is_array, ordered_like
from ihvp.errors import (
    IhvpError,
    InvalidOption,
    LossFailed,
    LossNotScalar,
    NonFinite,
    ParameterError,
    describe,
)
from ihvp.objective.composed import Composed
from ihvp.objective.example_gradients import ExampleGradients
from ihvp.objective.restricted import Only, named_blocks, restrict, restricted_to
from ihvp.processes import together
from ihvp.space import VectorSpace
from ihvp.verification import Premises, Report
from ihvp.weighting import Weighting, Weights


class Objective(ExampleGradients):
    r"""The mean loss over the data, as a function of the parameters.

    .. math:: C(\omega) = \frac{1}{W} \sum_{n=1}^{N} w_n C_n(\omega), \qquad W = \sum_{n=1}^{N} w_n

    where N is the number of examples in ``data``, and each weighs :math:`w_n = 1` unless ``weights`` says
    otherwise. A batch counts by the sum of the weights of its examples, so that a ragged last batch is right.

    Parameters
    ----------
    loss : callable
        ``loss(params, batch)``, a scalar: the mean ``Σ wₙCₙ / Σ wₙ`` over the batch, or the sum ``Σ wₙCₙ``
        with ``reduction="sum"``. With ``predict``, ``loss(outputs, batch)``.
    params
        torch: an ``nn.Module`` (its ``requires_grad`` parameters) or a dict or list of tensors. TensorFlow: a
        ``keras.Model`` or a list of ``tf.Variable``. JAX: any pytree. numdiff: numpy arrays, with ``grad``.
    data : tuple, dict, or a re-iterable of batches; optional
        One batch of arrays, or a list, ``DataLoader`` or ``tf.data.Dataset`` of them. None for a loss of the
        parameters alone, which then counts as one example.
    batch_size : int, optional
        The most examples that the loss sees at once. None: those of a batch, but Hessian products with torch
        and JAX cut one batch in memory where that is faster.
    reduction : {"mean", "sum"}
        What ``loss`` does over its batch. The objective is the mean over all data either way.
    predict : callable, optional
        ``predict(params, batch)``, the outputs of the model, where Gauss–Newton products are wanted.
    backend : str or CurvatureBackend, optional
        Overrides ``ihvp.use`` and the parameters' type.
    grad : callable, optional
        ``grad(params, batch)``, the gradient of the loss in the structure of the parameters, for the numdiff
        backend; takes the place of ``loss``.
    weights : callable, optional
        ``weights(batch) -> (B,)``: what the mean of the loss divides by, example by example, such as its
        number of labelled tokens, the weight of its class, or its sample weight. Numbers ≥ 0 in any array
        type; an example of weight 0 contributes nothing. None: each weighs 1.
    only : str, sequence of str, or callable, optional
        The parameters to differentiate by, where that is not all: names as in :attr:`blocks`, of layers too,
        or a function of a name. The others stay as they are, and vectors have no entries for them.
    checks : bool
        Whether the premises of results are checked where they are first needed: that the gradient of a batch
        is the weighted mean of those of its parts, and that the second derivative is that of the first.
        :meth:`report` tells what came out.

    Raises
    ------
    InvalidOption, ParameterError, DataError
        At once, for options, parameters and data that cannot work.
    LossError
        At the first gradient or product, which checks the loss: one finite scalar that depends on the
        parameters, and the same gradient twice. At the first result that rests on it:
        :class:`~ihvp.errors.LossNotAdditive`, :class:`~ihvp.errors.WrongSecondDerivative`.
    WeightError
        The weights are no numbers ≥ 0, one for each example, or all 0; when they are first asked for.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> A = np.array([[2.0, 0.0], [0.0, 8.0]])
    >>> objective = ihvp.Objective(params=np.ones(2), grad=lambda w, batch: A @ w)
    >>> objective.gradient()
    array([2., 8.])
    """

    def __init__(
        self,
        loss: Callable[..., Any] | None = None,
        params: Params = None,
        data: Any = None,
        batch_size: int | None = None,
        reduction: str = "mean",
        predict: Predict | None = None,
        backend: str | CurvatureBackend | None = None,
        *,
        grad: Callable[[Params, Batch], Any] | None = None,
        weights: Weights | None = None,
        only: Only | None = None,
        checks: bool = True,
    ) -> None:
        if loss is None and grad is None:
            raise InvalidOption(
                "loss", None, "a function loss(params, batch), or grad=… for finite differences"
            )
        for option, function in {"loss": loss, "predict": predict, "grad": grad}.items():
            check_function(option, function, "a function of the parameters and a batch")
        check_flag("checks", checks)
        if params is None:
            raise ParameterError(
                "params is None; expected the parameters that the loss is differentiated by."
            )
        check_choice("reduction", reduction, ("mean", "sum"))
        self.params = params
        self.batches = Batches(data, batch_size)
        self.reduction = reduction
        self.predict = predict
        if isroutine(params):
            raise ParameterError(
                f"params is a function, {describe(params)}; expected parameters. Objective takes the loss "
                "first: Objective(loss, params, data)."
            )
        with _reading(params):
            self.backend = create_backend(params, backend, has_gradient=grad is not None)
            if only is not None:
                self.backend = restrict(self.backend, params, only)
            flat = self.backend.flatten(params)
        self._set_loss(loss, grad)
        if flat.shape[0] == 0:
            raise ParameterError("There are no parameters to differentiate by; is everything frozen?")
        self.space = VectorSpace.of(flat, self.backend, params)
        self._set_weights(weights)
        self._alone = False
        self._set_batches(data, batch_size)
        self._premises = Premises(checks)
        self._adding_up: dict[int, bool] = {}
        self._without_parts: Batches | None = None
        self._agreed = False

    def _set_batches(self, data: Any, batch_size: int | None) -> None:
        cut = Batches if self.processes.count == 1 else Batches.part
        self.batches = cut(data, batch_size)
        self._num_examples: int | None = None
        self._counts: NDArray[np.int64] | None = None

    def _set_weights(self, weights: Any) -> None:
        check_function("weights", weights, "a function weights(batch) -> (B,), or None")
        self.weighting = Weighting(weights)
        self._total_weight: float | None = None
        self._overall_weight: float | None = None
        self._mean_weight: float | None = None

    def _set_loss(self, loss: Callable[..., Any] | None, grad: Callable[[Params, Batch], Any] | None) -> None:
        self._by_gradient = grad is not None
        self.output_loss = loss if self.predict else None
        self._value = Composed(self.predict, loss) if self.predict and loss else loss
        self.loss: Any = self._value if grad is None else GradientFunction(grad, self._value)

    @property
    def num_params(self) -> int:
        """P, the number of parameters."""
        return self.space.size

    @property
    def blocks(self) -> Mapping[str, slice]:
        """The part of a flat vector that each array of the parameters is, by its name in the framework.

        Raises
        ------
        MissingCapability
            The backend does not name them.

        Examples
        --------
        >>> import numpy as np
        >>> import ihvp
        >>> w = {"slope": np.ones(3), "offset": np.zeros(1)}
        >>> ihvp.Objective(params=w, grad=lambda w, batch: w).blocks
        {'slope': slice(0, 3, None), 'offset': slice(3, 4, None)}
        """
        return named_blocks(self.backend, self.params)

    def require_predict(self) -> tuple[Predict, OutputLoss]:
        """What predicts, and the loss of its outputs.

        Raises
        ------
        InvalidOption
            The objective was made without ``predict``.
        """
        if self.predict is None or self.output_loss is None:
            raise InvalidOption(
                "predict",
                self.predict,
                "a function of the objective: Objective(loss, params, data, predict=…) with predict(params, "
                "batch), the outputs of the model, and loss(outputs, batch), a scalar",
            )
        return self.predict, self.output_loss

    @together
    def value(self) -> float:
        """C(ω), the loss itself.

        Raises
        ------
        LossError
            The loss is unknown (``grad`` alone was given), not a scalar, or not finite; of several batches,
            it is not the weighted mean, or the sum, that it is said to be.
        """
        if self._value is None:
            raise InvalidOption("loss", None, "a loss beside grad=…, which is all that this objective has")
        self.agree()
        total, weight = 0.0, 0.0
        first: Batch = None
        for index, (batch, count) in enumerate(self.batches):
            if index == 0:
                first = batch
            else:
                self._require_additive_values(first, batch)
            share = self.weighting.total(batch, count)
            if not share:
                continue
            value = self._evaluate(batch)
            try:
                value = float(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise LossNotScalar(describe(value)) from error
            if not np.isfinite(value):
                raise NonFinite("The loss", index)
            total += value * (share if self.reduction == "mean" else 1)
            weight += share
        total, weight = self.processes.sum(np.array([total, weight]))
        return float(total / self._positive(weight))

    def _require_additive_values(self, *at_hand: Batch) -> None:
        if self._premises.needs_values:
            batches = self._batches_at_hand(at_hand)
            self._premises.require_additive_values(self._subject, batches, self._evaluate)

    def _evaluate(self, batch: Batch) -> Any:
        assert self._value is not None
        with naming(LossFailed, "The loss"):
            if isinstance(self.backend, SupportsValue):
                return self.backend.value(self._value, self.params, batch)
            return self._value(self.params, batch)

    def gradient(self) -> Vector:
        """The gradient ``∇C(ω)``, ``(P,)`` in the backend's array type."""
        return self.mean(lambda batch: self.backend.grad(self.loss, self.params, batch), "The gradient")

    def on(
        self,
        data: Any,
        loss: Callable[..., Any] | GradientFunction | None = None,
        *,
        weights: Weights | Literal["same"] | None = "same",
        mean_weight: float | None = None,
        alone: bool = False,
    ) -> Objective:
        """The same parameters and backend over other data, and with another loss: a test set, a margin.

        What the backend compiled for this objective serves the other one too.

        Parameters
        ----------
        data
            As in the constructor.
        loss : callable, optional
            As in the constructor, in the place of this objective's: ``loss(outputs, batch)`` where it has
            ``predict``, and a gradient where it was made with ``grad``, or an
            :class:`ihvp.backend.GradientFunction` of a gradient and its loss where the value is asked for.
        weights : callable or None, optional
            As in the constructor; by default this objective's.
        mean_weight : float, optional
            What takes the place of ``mean_weight`` in per-example gradients; by default that of ``data``.
        alone : bool
            Whether each process has all of ``data``, where that of this objective is spread over several.

        Examples
        --------
        >>> import numpy as np
        >>> import ihvp
        >>> x = np.array([[1.0], [2.0], [3.0]])
        >>> objective = ihvp.Objective(
        ...     params=np.ones(1), data=x, grad=lambda w, x: (x * x).mean(axis=0) * w
        ... )
        >>> ihvp.Hessian(objective.on(x[2:])).to_dense().round(6)
        array([[9.]])
        """
        other = copy.copy(self)
        other._alone = self._alone or alone
        other._set_batches(data, self.batches.batch_size)
        other._adding_up = {}
        if isinstance(weights, str) and weights == "same":
            weights = self.weighting.function
        other._set_weights(weights)
        other._mean_weight = mean_weight
        if isinstance(loss, GradientFunction):
            other._set_loss(loss.loss, loss.grad)
        elif loss is not None:
            if not callable(loss):
                raise InvalidOption("loss", loss, "a function, as in the constructor")
            other._set_loss(None if self._by_gradient else loss, loss if self._by_gradient else None)
        other._agreed = self._agreed and loss is None
        if loss is not None or other.weighting != self.weighting:
            other._premises = Premises(self._premises.enabled)
        return other

    def with_fixed_weights(self, batch: Batch) -> Objective:
        """The same for batches that take the place of ``batch``, with the weights of its examples."""
        weights = self.weighting.of(batch, count_examples(batch))
        other = copy.copy(self)
        other.weighting, other._mean_weight = Weighting(lambda _: weights), self.mean_weight
        other._premises = Premises(enabled=False)
        return other

    def without_data(self) -> Objective:
        """The same for batches that are passed to it, whose examples weigh what they do among those here."""
        self.require_additive()
        other = self.on([], mean_weight=self.mean_weight, alone=True)
        other.batches = replace(other.batches, may_be_empty=True)
        return other

    def at(self, params: Params) -> Objective:
        """The same loss, data and backend at other parameters: of the same structure, or flat, ``(P,)``.

        Raises
        ------
        ParameterError
            They are of another structure, size or dtype.

        Examples
        --------
        >>> import numpy as np
        >>> import ihvp
        >>> objective = ihvp.Objective(params=np.ones(2), grad=lambda w, batch: 2 * w)
        >>> objective.at(np.array([0.0, 3.0])).gradient()
        array([0., 6.])
        """
        with _reading(params):
            if is_array(params) and tuple(params.shape) == (self.num_params,) and not is_array(self.params):
                params = self.backend.unflatten(self.space.enter(params)[0], self.params)
            params = ordered_like(params, self.params)
            flat = self.backend.flatten(params)
        space = VectorSpace.of(flat, self.backend, params)
        if not space.matches(self.space):
            raise ParameterError(
                f"The parameters have {space.size:,} entries of {space.dtype} on {space.device}; expected "
                f"{self.space.size:,} of {self.space.dtype} on {self.space.device}, as the objective has."
            )
        other = copy.copy(self)
        other.params, other.space = params, space
        other._adding_up, other._agreed = {}, False
        other._premises = self._premises.elsewhere()
        return other

    def by(self, blocks: Mapping[str, slice]) -> Objective:
        """The same as a function of these parts of the vector of parameters, where the others stay.

        Examples
        --------
        >>> import numpy as np
        >>> import ihvp
        >>> w = {"slope": np.ones(3), "offset": np.zeros(1)}
        >>> ihvp.Objective(params=w, grad=lambda w, batch: w).by({"offset": slice(3, 4)}).num_params
        1
        """
        other = copy.copy(self)
        other.backend = restricted_to(self.backend, blocks, self.num_params)
        other.space = VectorSpace.of(other.backend.flatten(self.params), other.backend, self.params)
        return other

    def per_example_gradients(self, data: Any = None) -> Vector:
        """The gradients of single examples, ``(n, P)``: row i is ``N wᵢ / W ∇Cᵢ(ω)``.

        So the rows average to the gradient, and are ``∇Cᵢ`` where each example weighs 1. Where the data is
        spread over processes, each has the rows of its own examples.

        Parameters
        ----------
        data : optional
            As in the constructor; by default the objective's own. :meth:`per_example_gradient_chunks` gives
            the same rows without holding them all.
        """
        # Whole batches: the result holds all rows anyway, and chunks would have to be copied into it.
        blocks = list(self._finite_blocks(data, 1.0, lambda count: count))
        return blocks[0] if len(blocks) == 1 else self.space.xp.concat(blocks, axis=0)

    def per_example_gradient_chunks(self, data: Any = None, *, power: float = 1.0) -> Iterator[Vector]:
        """Yields the rows of :meth:`per_example_gradients` in blocks ``(b, P)`` of bounded memory.

        Parameters
        ----------
        data : optional
            As for :meth:`per_example_gradients`.
        power : float
            As for ``batch_gradient_chunks``.
        """
        return self._finite_blocks(data, power, lambda count: None)

    def _finite_blocks(self, data: Any, power: float, rows: Callable[[int], int | None]) -> Iterator[Vector]:
        objective = self if data is None else self.on(data)
        _ = objective.mean_weight if power else None  # also where a process has no example to ask for it
        for index, (batch, count) in enumerate(objective.batches):
            for block in objective.batch_gradient_chunks(batch, power=power, rows=rows(count)):
                if not algebra.all_finite(block):
                    raise NonFinite("A per-example gradient", index)
                yield block

    def report(self) -> Report:
        """What was checked of the loss so far, and what came out.

        Examples
        --------
        >>> import numpy as np
        >>> import ihvp
        >>> x = np.array([[1.0], [2.0], [4.0]])
        >>> objective = ihvp.Objective(params=np.ones(1), data=x, grad=lambda w, x: w - x.mean(axis=0))
        >>> rows = objective.per_example_gradients()
        >>> print(objective.report())
        The gradient is finite and the same twice: passed
        A batch's gradient is that of its parts: passed
        The second derivative is that of the first: not checked yet
        """
        return self._premises.report()


@contextmanager
def _reading(params: Params) -> Iterator[None]:
    """Name what a framework raises about parameters that it cannot take."""
    try:
        yield
    except (IhvpError, MemoryError):
        raise
    except Exception as error:
        raise ParameterError(
            f"The parameters, {describe(params)}, are no arrays that can be differentiated by "
            f"({type(error).__name__}: {error}). Pass the arrays themselves, in a container that their "
            "framework knows."
        ) from error

"""The objective: a loss, its parameters and its data, as one function of the parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from ihvp import algebra
from ihvp._inference import create_backend
from ihvp.backend import (
    Batch,
    CurvatureBackend,
    GradientFunction,
    Loss,
    Params,
    SupportsPerExampleGrads,
    SupportsReduce,
    SupportsValue,
    Vector,
)
from ihvp.data import Batches, count_examples, take_examples
from ihvp.errors import (
    DataError,
    EmptyData,
    InvalidOption,
    LossNotScalar,
    NonFinite,
    NotReiterable,
    ParameterError,
    describe,
)
from ihvp.space import VectorSpace
from ihvp.verification import verify_loss

# Per-example gradients are made in chunks of at most this many numbers (256 MiB in float32).
_CHUNK_NUMBERS = 1 << 26


class Objective:
    r"""The mean loss over the data, as a function of the parameters.

    .. math:: C(\omega) = \frac{1}{N} \sum_{n=1}^{N} C_n(\omega)

    where N is the number of examples in ``data``. Batches are weighted by their number of examples, so that a
    ragged last batch is right.

    Parameters
    ----------
    loss : callable
        ``loss(params, batch)``, a scalar: the mean over the batch, or the sum with ``reduction="sum"``. With
        ``predict``, ``loss(outputs, batch)``.
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

    Raises
    ------
    InvalidOption, ParameterError, DataError
        At once, for options, parameters and data that cannot work.
    LossError
        At the first gradient or product, which checks the loss: one finite scalar that depends on the
        parameters, and the same gradient twice.

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
        predict: Callable[[Params, Batch], Any] | None = None,
        backend: str | CurvatureBackend | None = None,
        *,
        grad: Callable[[Params, Batch], Any] | None = None,
    ) -> None:
        if loss is None and grad is None:
            raise InvalidOption(
                "loss", None, "a function loss(params, batch), or grad=… for finite differences"
            )
        for option, function in {"loss": loss, "predict": predict, "grad": grad}.items():
            if function is not None and not callable(function):
                raise InvalidOption(option, function, "a function of the parameters and a batch")
        if params is None:
            raise ParameterError(
                "params is None; expected the parameters that the loss is differentiated by."
            )
        if reduction not in ("mean", "sum"):
            raise InvalidOption("reduction", reduction, "'mean' or 'sum'")
        self.params = params
        self.batches = Batches(data, batch_size)
        self.reduction = reduction
        self.predict = predict
        self.backend = create_backend(params, backend, has_gradient=grad is not None)
        self._set_loss(loss, grad)
        flat = self.backend.flatten(params)
        if flat.shape[0] == 0:
            raise ParameterError("There are no parameters to differentiate by; is everything frozen?")
        self.space = VectorSpace.of(flat, self.backend, params)
        self._num_examples: int | None = None
        self._verified = False
        self._adding_up: dict[int, bool] = {}

    def _set_loss(self, loss: Callable[..., Any] | None, grad: Callable[[Params, Batch], Any] | None) -> None:
        self._by_gradient = grad is not None
        self.output_loss = loss if self.predict else None
        self._value = _Composed(self.predict, loss) if self.predict and loss else loss
        self.loss: Any = self._value if grad is None else GradientFunction(grad, self._value)

    @property
    def num_params(self) -> int:
        """P, the number of parameters."""
        return self.space.size

    @property
    def num_examples(self) -> int:
        """N, the number of examples; counted over the data on first use."""
        if self._num_examples is None:
            self._num_examples = sum(count for _, count in self.batches)
        return self._num_examples

    @property
    def total_examples(self) -> int:
        """N over all the processes that the data is spread over; to be asked by all of them at once."""
        if not isinstance(self.backend, SupportsReduce):
            return self.num_examples
        return self._over_processes(self.backend, self.num_examples)

    @property
    def num_processes(self) -> int:
        """Over how many processes the data is spread; to be asked by all of them at once."""
        return self._over_processes(self.backend, 1) if isinstance(self.backend, SupportsReduce) else 1

    def value(self) -> float:
        """C(ω), the loss itself.

        Raises
        ------
        LossError
            The loss is unknown (``grad`` alone was given), not a scalar, or not finite.
        """
        if self._value is None:
            raise InvalidOption("loss", None, "a loss beside grad=…, which is all that this objective has")
        total, examples = 0.0, 0
        for index, (batch, count) in enumerate(self.batches):
            value = self._evaluate(batch)
            try:
                value = float(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise LossNotScalar(describe(value)) from error
            if not np.isfinite(value):
                raise NonFinite("The loss", index)
            total += value * (count if self.reduction == "mean" else 1)
            examples += count
        return total / examples

    def _evaluate(self, batch: Batch) -> Any:
        assert self._value is not None
        if isinstance(self.backend, SupportsValue):
            return self.backend.value(self._value, self.params, batch)
        return self._value(self.params, batch)

    def gradient(self) -> Vector:
        """The gradient ``∇C(ω)``, ``(P,)`` in the backend's array type."""
        return self.mean(lambda batch: self.backend.grad(self.loss, self.params, batch), "The gradient")

    def on(self, data: Any, loss: Callable[..., Any] | GradientFunction | None = None) -> Objective:
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
        other.batches = Batches(data, self.batches.batch_size)
        other._num_examples = None
        other._adding_up = {}
        if isinstance(loss, GradientFunction):
            other._set_loss(loss.loss, loss.grad)
            other._verified = False
        elif loss is not None:
            if not callable(loss):
                raise InvalidOption("loss", loss, "a function, as in the constructor")
            other._set_loss(None if self._by_gradient else loss, loss if self._by_gradient else None)
            other._verified = False
        return other

    def at(self, params: Params) -> Objective:
        """The same loss, data and backend at other parameters, of the same structure and shapes.

        Raises
        ------
        ParameterError
            They are of another size or dtype.

        Examples
        --------
        >>> import numpy as np
        >>> import ihvp
        >>> objective = ihvp.Objective(params=np.ones(2), grad=lambda w, batch: 2 * w)
        >>> objective.at(np.array([0.0, 3.0])).gradient()
        array([0., 6.])
        """
        space = VectorSpace.of(self.backend.flatten(params), self.backend, params)
        if not space.matches(self.space):
            raise ParameterError(
                f"The parameters have {space.size:,} entries of {space.dtype} on {space.device}; expected "
                f"{self.space.size:,} of {self.space.dtype} on {self.space.device}, as the objective has."
            )
        other = copy.copy(self)
        other.params, other.space = params, space
        other._adding_up = {}
        return other

    def per_example_gradients(self, data: Any = None) -> Vector:
        """The gradients of single examples, ``(n, P)``: row i is ``∇C_i(ω)``.

        Parameters
        ----------
        data : optional
            As in the constructor; by default the objective's own. :meth:`per_example_gradient_chunks` gives
            the same rows without holding them all.
        """
        # Whole batches: the result holds all rows anyway, and chunks would have to be copied into it.
        blocks = list(
            self._finite_blocks(data, lambda batch: [self._example_gradients(batch, count_examples(batch))])
        )
        return blocks[0] if len(blocks) == 1 else self.space.xp.concat(blocks, axis=0)

    def per_example_gradient_chunks(self, data: Any = None) -> Iterator[Vector]:
        """Yields the rows of :meth:`per_example_gradients` in blocks ``(b, P)`` of bounded memory."""
        return self._finite_blocks(data, self.batch_gradient_chunks)

    def _finite_blocks(self, data: Any, gradients: Callable[[Batch], Iterable[Vector]]) -> Iterator[Vector]:
        self.verify()
        batches = self.batches if data is None else Batches(data, self.batches.batch_size)
        for index, (batch, _) in enumerate(batches):
            for block in gradients(batch):
                if not algebra.all_finite(block):
                    raise NonFinite("A per-example gradient", index)
                yield block

    def batch_gradient_chunks(self, batch: Batch) -> Iterator[Vector]:
        """The gradients of the examples of one batch, in blocks ``(b, P)`` of bounded memory, unchecked."""
        count = count_examples(batch)
        rows = max(1, _CHUNK_NUMBERS // self.num_params)
        for start in range(0, count, rows):
            piece = take_examples(batch, start, min(start + rows, count)) if rows < count else batch
            yield self._example_gradients(piece, min(rows, count - start))

    def _example_gradients(self, batch: Batch, count: int) -> Vector:
        if isinstance(self.backend, SupportsPerExampleGrads):
            return self.backend.per_example_grads(self.loss, self.params, batch)
        singles = [batch] if count == 1 else [take_examples(batch, i, i + 1) for i in range(count)]
        rows = [self.backend.grad(self.loss, self.params, single) for single in singles]
        return self.space.xp.stack(rows, axis=0)

    def mean(
        self,
        term: Callable[[Batch], Vector],
        what: str,
        terms: Iterable[tuple[Vector, int]] | None = None,
    ) -> Vector:
        """``1/N Σ`` of a per-batch quantity, with the weights that make it the mean over examples.

        Parameters
        ----------
        term : callable
            Takes a batch, gives a vector or block that is freshly allocated: the mean (or sum) over it.
        what : str
            What is computed, for the error text.
        terms : iterable of (Vector, int), optional
            The same over all the data, computed in another way: each term with its number of examples.

        Raises
        ------
        NonFinite
            With the index of the batch.
        DataError
            The data gave another number of examples than before.
        """
        total: Vector = None
        first = examples = 0
        if terms is None:
            terms = self._terms(term)
        else:
            self.verify()
        for part, count in terms:
            examples += count
            if total is None:
                total, first = part, count
            else:
                # Weights relative to the first batch: exactly 1 for uniform batches, and no product that
                # grows with N, which half precision could not hold.
                total = algebra.axpy(total, count / first if self.reduction == "mean" else 1.0, part)
        self._check_count(examples)
        unit = first if self.reduction == "mean" else 1
        if isinstance(self.backend, SupportsReduce):
            examples = self._over_processes(self.backend, examples)
            total = self.backend.reduce(total if unit == examples else total * (unit / examples))
        elif unit != examples:
            total = total * (unit / examples)
        if not algebra.all_finite(total):
            self._raise_non_finite(term, what)
        return total

    def _terms(self, term: Callable[[Batch], Vector]) -> Iterator[tuple[Vector, int]]:
        for batch, count in self._pass():
            self._verify_on(batch)
            yield term(batch), count

    def _over_processes(self, backend: SupportsReduce, count: int) -> int:
        counted = self.space.xp.asarray([count], device=self.space.device)
        return int(backend.reduce(counted)[0])

    def _pass(self) -> Iterator[tuple[Batch, int]]:
        try:
            yield from self.batches
        except EmptyData as error:
            if self._num_examples is None:
                raise
            raise NotReiterable(describe(self.batches.data)) from error

    def _check_count(self, examples: int) -> None:
        if self._num_examples is None:
            self._num_examples = examples
        elif examples != self._num_examples:
            raise DataError(
                f"The data gave {self._num_examples} examples at first and {examples} now; expected the same "
                "data at every pass. Pass a list of batches, or drop sampling from the loader."
            )

    def _raise_non_finite(self, term: Callable[[Batch], Vector], what: str) -> None:
        for index, (batch, _) in enumerate(self.batches):
            if not algebra.all_finite(term(batch)):
                raise NonFinite(what, index)
        raise NonFinite(what)

    def adds_up(self, batch_size: int) -> bool:
        """Whether data that is one batch in memory may be cut: its gradient is the mean over the pieces.

        It is not for a loss that compares examples with each other, or that divides by anything but their
        number, or whose data is no list of examples.
        """
        if batch_size not in self._adding_up:
            self._adding_up[batch_size] = self._compare_with_pieces(batch_size)
        return self._adding_up[batch_size]

    def _compare_with_pieces(self, batch_size: int) -> bool:
        examples = self.num_examples
        difference = self.backend.grad(self.loss, self.params, self.batches.data)
        size = 0.0
        try:
            for piece, count in Batches(self.batches.data, batch_size):
                part = self.backend.grad(self.loss, self.params, piece)
                weight = count / examples if self.reduction == "mean" else 1.0
                size += weight * float(algebra.norms(part))
                difference = algebra.axpy(difference, -weight, part)
        except Exception:  # what a loss raises on rows that are no examples is its own
            return False
        # At an optimum the parts cancel: it is them that the difference is small against.
        return bool(algebra.norms(difference) <= self.space.eps**0.5 * size)

    def verify(self) -> None:
        """Check the loss once, on the first batch; see :func:`ihvp.verification.verify_loss`."""
        if not self._verified:
            self._verify_on(next(iter(self.batches))[0])

    def _verify_on(self, batch: Batch) -> None:
        if not self._verified:
            verify_loss(self.backend, self.loss, self.params, batch, self.space)
            self._verified = True


class _Composed:
    """``loss(predict(params, batch), batch)``; equal for equal parts, so compiled code is found again."""

    def __init__(self, predict: Callable[[Params, Batch], Any], loss: Loss) -> None:
        self.parts = (predict, loss)

    def __call__(self, params: Params, batch: Batch) -> Any:
        predict, loss = self.parts
        return loss(predict(params, batch), batch)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Composed) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(self.parts)

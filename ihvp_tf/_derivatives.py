"""The derivatives as TensorFlow expressions; all of it runs while a graph is traced.

Second derivatives are reverse over reverse: it needs the time of 1.9 gradients on a 784-512-512-10 network
where forward over reverse (``tf.autodiff.ForwardAccumulator``) needs 2.3, and it passes through loops,
conditionals and embedding look-ups, where that fails.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from ihvp.backend import Batch, Params
from ihvp.errors import (
    DataError,
    IhvpError,
    LossIndependentOfParameters,
    LossNotScalar,
    UnequalBatches,
    describe,
)
from ihvp_tf._inputs import inputs
from ihvp_tf._parameters import size_of, vector_dtype

Tensor = Any
Functions = Sequence[Callable[..., Any]]


def gradient(functions: Functions, params: Params, variables: Sequence[Any], batch: Batch) -> Tensor:
    """``∇ loss``, ``(P,)``."""
    (loss,) = functions
    with watching(variables) as tape:
        value = _scalar(loss(params, batch))
    return _join(_gradients(tape, value, variables, "no gradient reaches any of them"), variables)


def value(functions: Functions, params: Params, variables: Sequence[Any], batch: Batch) -> Tensor:
    """The loss, as it returns it."""
    (loss,) = functions
    return tf.convert_to_tensor(loss(params, batch))


def hessian_product(
    functions: Functions, params: Params, variables: Sequence[Any], batch: Batch, v: Tensor
) -> Tensor:
    """``∇² loss · v`` for ``v`` of shape ``(P,)``, or of each row of ``(k, P)``; they share the gradient."""
    (loss,) = functions
    with watching(variables) as outer:
        with watching(variables) as inner:
            value = _scalar(loss(params, batch))
        first = _gradients(inner, value, variables, "no gradient reaches any of them")
    return _by_row(lambda row: _pull_back(outer, first, _split(row, variables), variables), v)


def gauss_newton_product(
    functions: Functions, params: Params, variables: Sequence[Any], batch: Batch, v: Tensor
) -> Tensor:
    """``Jᵀ (∇²_outputs loss) J v`` for ``v`` of shape ``(P,)``, or of each row of ``(k, P)``.

    ``J v`` is the derivative by u of ``Jᵀ u``, which is linear in u: two reverse passes, whose first one all
    rows share.
    """
    predict, loss = functions
    forward, structure, outputs, push = _pushing(lambda: predict(params, batch), variables, " of the outputs")
    outer, points, slope = _slope(loss, structure, outputs, batch)

    def product(row: Tensor) -> Tensor:
        curved = _apply(outer, slope, push(row), points)
        return _pull_back(forward, outputs, curved, variables)

    return _by_row(product, v)


def jacobian_product(
    functions: Functions, params: Params, variables: Sequence[Any], batch: tuple[Batch, Tensor]
) -> list[Tensor]:
    """``J v`` of each of the outputs for every row of the vectors ``(k, P)`` beside the batch, ``(k, …)``."""
    (predict,), (data, vectors) = functions, batch
    _, _, outputs, push = _pushing(lambda: predict(params, data), variables, " of the outputs")
    dtype = vectors.dtype

    def pushed(row: Tensor) -> list[Tensor]:
        return [tf.cast(part, dtype) for part in push(row)]

    parts: list[Tensor] = tf.map_fn(pushed, vectors, fn_output_signature=[dtype] * len(outputs))
    return parts


def output_gradient(
    functions: Functions, params: Params, variables: Sequence[Any], batch: tuple[Batch, Any]
) -> Tensor:
    """The gradient of a loss of the outputs beside the batch by them, ``(F,)``."""
    (loss,), (data, structure) = functions, batch
    outputs = tf.nest.flatten(structure)
    _, _, slope = _slope(loss, structure, outputs, data)
    return _join(_or_zeros(slope, outputs), outputs)


def output_hessian_product(
    functions: Functions, params: Params, variables: Sequence[Any], batch: tuple[Batch, Any, Tensor]
) -> Tensor:
    """``∇²_outputs loss · v`` of the outputs beside the batch for every row of the vectors, ``(k, F)``."""
    (loss,), (data, structure, vectors) = functions, batch
    outputs = tf.nest.flatten(structure)
    outer, points, slope = _slope(loss, structure, outputs, data)
    return tf.map_fn(lambda row: _pull_back(outer, slope, _split_as(row, outputs), points), vectors)


def pulled_back(
    tape: Any, outputs: Sequence[Tensor], cotangents: Tensor, sources: Sequence[Tensor]
) -> list[Tensor]:
    """The derivatives of ``⟨cotangents, outputs⟩`` by tensors that have led to the outputs."""
    return _apply(tape, outputs, _split_as(cotangents, outputs), sources)


def per_example_gradients(
    functions: Functions, params: Params, variables: Sequence[Any], batch: Batch
) -> Tensor:
    """The gradients of single examples, ``(B, P)``; each example keeps a leading dimension of 1."""
    size = sum(map(size_of, variables))
    return _by_example(
        lambda example: gradient(functions, params, variables, example),
        batch,
        tf.TensorSpec((size,), vector_dtype(variables)),
    )


def example_product(
    functions: Functions, params: Params, variables: Sequence[Any], batch: tuple[Batch, Tensor]
) -> Tensor:
    """``∇C_i · v`` for every example and every row of the vectors ``(k, P)`` beside the batch, ``(k, B)``.

    It is ``J v`` of the single losses, as for the Gauss–Newton matrix.
    """
    (loss,), (examples, vectors) = functions, batch
    push = _pushing(lambda: _losses(loss, params, variables, examples), variables)[-1]
    return tf.map_fn(lambda row: push(row)[0], vectors)


def input_product(
    functions: Functions, params: Params, variables: Sequence[Any], batch: tuple[Batch, Tensor]
) -> Tensor:
    """The derivative of ``∇ loss · v`` by all inputs, ``(k, n)``, for every row of the vectors."""
    (loss,), (data, vectors) = functions, batch
    sources = inputs(data)
    with watching(sources) as outer:
        with watching(variables) as inner:
            value = _scalar(loss(params, data))
        first = _gradients(inner, value, variables, "no gradient reaches any of them")
    return tf.map_fn(lambda row: _pull_back(outer, first, _split(row, variables), sources), vectors)


def _pushing(
    run: Callable[[], Any], variables: Sequence[Any], of: str = ""
) -> tuple[Any, Any, list[Tensor], Callable[[Tensor], list[Tensor]]]:
    """What ``run`` gives, the tape that has recorded it, its tensors, and ``v ↦ J v`` of these."""
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as transposed:
        with watching(variables) as forward:
            structure = run()
            outputs = [tf.convert_to_tensor(output) for output in tf.nest.flatten(structure)]
        cotangents = [tf.zeros_like(output) for output in outputs]
        transposed.watch(cotangents)
        pulled = forward.gradient(outputs, variables, output_gradients=cotangents)
        pulled = _dense(pulled, f"no gradient{of} reaches any of them")
    return forward, structure, outputs, lambda v: _apply(transposed, pulled, _split(v, variables), cotangents)


def _slope(
    loss: Callable[..., Any], structure: Any, outputs: Sequence[Tensor], batch: Batch
) -> tuple[Any, list[Tensor], list[Tensor]]:
    """The gradient of the loss by copies of the outputs, with the tape that has recorded it."""
    points = [tf.stop_gradient(output) for output in outputs]
    with watching(points) as outer:
        with watching(points) as inner:
            value = _scalar(loss(tf.nest.pack_sequence_as(structure, points), batch))
        slope = _gradients(inner, value, points, "the loss ignores the outputs")
    return outer, points, slope


def _losses(loss: Callable[..., Any], params: Params, variables: Sequence[Any], batch: Batch) -> Tensor:
    """The loss at every example, ``(B,)``."""
    dtype = vector_dtype(variables)
    return _by_example(
        lambda example: tf.cast(_scalar(loss(params, example)), dtype), batch, tf.TensorSpec((), dtype)
    )


def _by_example(function: Callable[[Batch], Tensor], batch: Batch, signature: Any) -> Tensor:
    """The function of every example, stacked; each example keeps a leading dimension of 1."""
    leaves = tf.nest.flatten(batch)
    places = [i for i, leaf in enumerate(leaves) if tf.is_tensor(leaf) and leaf.shape.rank != 0]
    if not places:
        raise DataError(
            f"The batch is {describe(batch)} and has no array with a leading dimension; expected arrays with "
            "one row an example."
        )
    lengths = {leaves[i].shape[0] for i in places} - {None}
    if len(lengths) > 1:
        raise UnequalBatches(
            f"The arrays of the batch have {' and '.join(map(str, sorted(lengths)))} rows; expected one row "
            "an example in each."
        )

    def one(rows: Sequence[Tensor]) -> Tensor:
        example = list(leaves)
        for i, row in zip(places, rows, strict=True):
            example[i] = row[tf.newaxis]
        return function(tf.nest.pack_sequence_as(batch, example))

    stacked = [leaves[i] for i in places]
    try:
        # What has no converter would loop by itself, and for some operations (DynamicPartition) wrongly.
        with _without_conversion_reports():
            return tf.vectorized_map(one, stacked, fallback_to_while_loop=False)
    except IhvpError:
        raise
    except Exception:  # the converter has no one class for "this operation cannot be vectorised"
        return tf.map_fn(one, stacked, fn_output_signature=signature)


@contextmanager
def _without_conversion_reports() -> Iterator[None]:
    """Keeps the pages that TensorFlow writes about an operation without a converter from the terminal."""
    logger, thread = logging.getLogger("tensorflow"), threading.get_ident()

    def told(record: logging.LogRecord) -> bool:
        return record.module != "pfor" or record.thread != thread

    logger.addFilter(told)
    try:
        yield
    finally:
        logger.removeFilter(told)


@contextmanager
def watching(sources: Sequence[Tensor]) -> Iterator[Any]:
    """A tape of what follows from the sources."""
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(sources)
        yield tape


def _scalar(value: Any) -> Tensor:
    if isinstance(value, (float, np.floating)):
        raise LossIndependentOfParameters(f"it returned the number {value}")
    if not tf.is_tensor(value):
        raise LossNotScalar(describe(value))
    if value.shape.rank not in (0, None) or not value.dtype.is_floating:
        raise LossNotScalar(f"a tensor of shape {tuple(value.shape)} and dtype {value.dtype.name}")
    return tf.ensure_shape(value, ())


def _gradients(tape: Any, value: Tensor, sources: Sequence[Tensor], reason: str) -> list[Tensor]:
    """By each source; None where the value does not depend on it."""
    return _dense(tape.gradient(value, sources), reason)


def _dense(gradients: Sequence[Any], reason: str) -> list[Tensor]:
    if all(part is None for part in gradients):
        raise LossIndependentOfParameters(reason)
    # Embedding look-ups have gradients of rows only (tf.IndexedSlices).
    return [None if part is None else tf.convert_to_tensor(part) for part in gradients]


def _apply(
    tape: Any, targets: Sequence[Any], weights: Sequence[Tensor], sources: Sequence[Tensor]
) -> list[Tensor]:
    """``Σ_i weights_iᵀ ∂targets_i / ∂source`` for each source; targets that are None contribute nothing."""
    connected = [
        (target, weight) for target, weight in zip(targets, weights, strict=True) if target is not None
    ]
    parts = tape.gradient(
        [target for target, _ in connected],
        sources,
        output_gradients=[weight for _, weight in connected],
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    return [tf.convert_to_tensor(part) for part in parts]


def _pull_back(
    tape: Any, targets: Sequence[Any], weights: Sequence[Tensor], variables: Sequence[Any]
) -> Tensor:
    return _join(_apply(tape, targets, weights, variables), variables)


def _by_row(function: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    # A loop in the graph: as fast as tf.vectorized_map on all but tiny networks, in memory that does not grow
    # with k.
    return function(v) if v.shape.rank == 1 else tf.map_fn(function, v)


def _split(v: Tensor, variables: Sequence[Any]) -> list[Tensor]:
    parts = tf.split(v, [size_of(variable) for variable in variables])
    return [
        tf.cast(tf.reshape(part, variable.shape), variable.dtype)
        for part, variable in zip(parts, variables, strict=True)
    ]


def _split_as(v: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The parts of a vector in the shapes of tensors, which may be known only as the graph runs."""
    parts = tf.split(v, [tf.size(tensor) for tensor in tensors], num=len(tensors))
    return [
        tf.cast(tf.reshape(part, tf.shape(tensor)), tensor.dtype)
        for part, tensor in zip(parts, tensors, strict=True)
    ]


def _or_zeros(parts: Sequence[Any], tensors: Sequence[Tensor]) -> list[Tensor]:
    return [
        tf.zeros_like(tensor) if part is None else part for part, tensor in zip(parts, tensors, strict=True)
    ]


def _join(parts: Sequence[Any], variables: Sequence[Any]) -> Tensor:
    dtype = vector_dtype(variables)
    return tf.concat(
        [
            tf.zeros(size_of(variable), dtype) if part is None else tf.cast(tf.reshape(part, [-1]), dtype)
            for part, variable in zip(parts, variables, strict=True)
        ],
        axis=0,
    )

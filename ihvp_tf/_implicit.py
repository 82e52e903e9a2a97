"""Values whose derivatives are told to TensorFlow's tapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from ihvp.errors import TracedValue, UnsupportedOperation, is_traced
from ihvp_tf._parameters import leaves_of


def differentiable(function: Callable[..., Any], *inputs: Any) -> Any:
    """The outputs of ``function(*inputs)``, attached to the inputs by what pulls cotangents back."""
    # Reading a variable is what a tape sees of it.
    sources = [[] if value is None else list(map(tf.convert_to_tensor, leaves_of(value))) for value in inputs]
    tensors = [tensor for leaves in sources for tensor in leaves]
    if any(map(is_traced, tensors)):
        raise TracedValue("A parameter, a hyperparameter or v")
    outputs, pull_back = function(*inputs)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def attached(*tensors: Any) -> Any:
        def pulled(*cotangents: Any) -> list[Any]:
            found = pull_back(tf.nest.pack_sequence_as(outputs, cotangents))
            parts: list[Any] = []
            for leaves, part in zip(sources, found, strict=True):
                values = [tf.zeros_like(leaf) for leaf in leaves] if part is None else leaves_of(part)
                parts += [tf.cast(value, leaf.dtype) for value, leaf in zip(values, leaves, strict=True)]
            return _once(parts, *tensors, *cotangents)

        return [tf.convert_to_tensor(leaf) for leaf in tf.nest.flatten(outputs)], pulled

    return tf.nest.pack_sequence_as(outputs, attached(*tensors))


def _once(values: list[Any], *sources: Any) -> list[Any]:
    """The values, which a tape cannot differentiate again."""

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def constant(*sources: Any) -> Any:
        def refuse(*cotangents: Any) -> Any:
            raise UnsupportedOperation("a solve of ihvp", "TensorFlow", "its first derivative alone")

        return [tf.identity(value) for value in values], refuse

    return list(constant(*sources))

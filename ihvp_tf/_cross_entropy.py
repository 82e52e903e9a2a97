"""The second derivative of the cross-entropy by its labels, of which TensorFlow forgets a part.

``tf.nn.softmax_cross_entropy_with_logits`` computes its gradient by the logits, ``softmax(logits) −
labels``, along with its value. The registered derivative of that output is the one by the logits; the one
by the labels, ``−1``, is missing. It matters where labels depend on the parameters, or where one asks for
derivatives by soft labels.
"""

from __future__ import annotations

from typing import Any

from tensorflow.python.framework import ops
from tensorflow.python.ops import nn_grad  # noqa: F401 - registers the gradient

from ihvp.shared_context import Substitution


def _gradient(op: Any, by_loss: Any, by_slope: Any) -> tuple[Any, Any]:
    (original,) = whole_cross_entropy.originals
    by_logits, by_labels = original(op, by_loss, by_slope)
    if whole_cross_entropy.here and by_slope is not None:
        by_labels -= by_slope
    return by_logits, by_labels


_entry = ops.gradient_registry._registry["SoftmaxCrossEntropyWithLogits"]
whole_cross_entropy = Substitution((_entry, "type", _gradient))
"""In this context the derivative is whole."""

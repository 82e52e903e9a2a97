"""The gradients of blocks of examples, formed or only multiplied."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.algebra import to_numpy
from ihvp.arguments import naming
from ihvp.backend import Batch, SupportsExampleProducts, Vector
from ihvp.data import describe_structure
from ihvp.errors import DataError, LossFailed, NonFinite
from ihvp.influence.blocks import Block
from ihvp.objective import Objective

# Up to so many vectors are multiplied without forming the gradients. On a processor, with 1,500 examples and
# networks of P = 2,410 and 85,002, that is 4 and 19 times as fast for one vector with torch, 11 and 160 times
# with JAX, 7 and 12 times with TensorFlow. Beyond, gradients are faster from 28 and 70 vectors on with torch.
_FEW = 24


def gradients(
    objective: Objective, block: Block, what: str, power: float = 1.0, *, checked: bool = True
) -> Vector:
    """The gradients of a block's examples, ``(count, P)``, weighed as :class:`~ihvp.Objective` rows are.

    ``what`` says whose examples they are, for the errors: DataError where the loss cannot take them,
    NonFinite where a gradient is not finite. ``power`` is that of
    :meth:`ihvp.Objective.batch_gradient_chunks`: 1 for training examples, 0 for test points. Who checks what
    is made of them needs no pass over them to have them ``checked``.
    """
    parts: list[Vector] = []
    for batch in block.batches:
        with loss_on(what, batch):
            parts += objective.batch_gradient_chunks(batch, power=power)
    rows = parts[0] if len(parts) == 1 else objective.space.xp.concat(parts, axis=0)
    if checked and not algebra.all_finite(rows):
        raise non_finite(block, what)
    return rows


def derivatives_along(objective: Objective, block: Block, x: Vector, what: str) -> NDArray[np.float64]:
    """``N w_i / W ∇C_i · x_j`` of a block's examples and the columns of ``x``, ``(count, k)``.

    The gradients are formed where many vectors share them, and where the backend has no other way.
    """
    backend, space = objective.backend, objective.space
    # Half precision is added up in single precision where the gradients are formed, and only there.
    half = space.product_eps > space.eps
    if half or x.shape[1] > _FEW or not isinstance(backend, SupportsExampleProducts):
        return algebra.gram(gradients(objective, block, what).T, x)
    parts = []
    for batch in block.batches:
        with loss_on(what, batch):
            objective.require_additive(batch)
            products = backend.example_products(objective.loss, objective.params, batch, x)
            parts.append(objective.scale_examples(to_numpy(products), batch))
    found = np.concatenate(parts, dtype=np.float64)
    if not np.all(np.isfinite(found)):
        raise non_finite(block, what)
    return found


def non_finite(block: Block, what: str) -> NonFinite:
    """The error that says in which block a gradient is not finite."""
    last = block.first + block.count - 1
    return NonFinite(f"The gradient of one of the {what} examples {block.first:,} to {last:,}")


@contextmanager
def loss_on(what: str, batch: Batch) -> Iterator[None]:
    """Turns what a loss raises on strange data (a label out of range, a wrong width) into a DataError."""
    try:
        with naming(LossFailed, "The loss"):
            yield
    except LossFailed as error:
        cause = error.__cause__
        told = f"{type(cause).__name__}: {str(cause).rstrip('.')}"
        raise DataError(
            f"The loss failed on the {what} data, {describe_structure(batch)}, with {told}. Expected "
            "examples as the model takes them: the same shapes, and labels in its range."
        ) from cause

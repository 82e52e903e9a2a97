"""Products of examples' gradients with an inverse in Kronecker factors, without the gradients themselves."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ihvp import algebra
from ihvp.backend import Batch, Vector
from ihvp.errors import NonFinite
from ihvp.kronecker.blocks import KroneckerBlock
from ihvp.kronecker.coverage import opened, require_used
from ihvp.kronecker.factors import weight_gradients, with_bias
from ihvp.kronecker.structured import KFAC
from ihvp.objective import Objective
from ihvp.weighting import scale_rows

Rows: TypeAlias = "tuple[Vector, Vector] | Vector"
"""The gradients of B examples by a layer's weights.

``(B, d_out)`` and ``(B, d_in)`` of which they are the outer products, or where places share the weights
themselves, ``(B, groups, d_out, d_in)``.
"""

# Outer products of so many numbers are formed at once (64 MiB in float32).
_NUMBERS = 1 << 24


class Contraction:
    r"""``∇C_i · (K + λI)⁻¹ ∇L_j`` of many examples i and j, layer by layer.

    Where no places share a layer's weights, a gradient is in the eigenvectors' basis an outer product u vᵀ,
    and the inverse multiplies it entry by entry with :math:`L = 1 / (\Lambda + \lambda)`. With
    :math:`L = \sum_r \alpha_r \beta_r^\top` the product of two is
    :math:`\sum_r (u_i \cdot \alpha_r \cdot u_j)(v_i \cdot \beta_r \cdot v_j)`: as :math:`\lambda L` is close
    to 1 where the curvature is small, few terms are enough. They are taken until the rest is below √ε / λ, so
    that an inverse product is right to √ε ‖∇L‖ / λ, as by a solve with that residual. Where places share the
    weights, or many terms are needed, the inverse is applied to one side, and the gradients of the other are
    not even rotated; nor formed, where that side has fewer examples than the layer has inputs or outputs.

    K has no parameters outside its layers, and ``pairs`` is how many products will be asked for: terms pay
    from some number on.
    """

    def __init__(self, operator: KFAC, damping: float, pairs: int) -> None:
        self.operator = operator
        self.tolerance = operator.space.eps**0.5
        self._blocks: list[KroneckerBlock] = [
            block for block in operator.blocks if isinstance(block, KroneckerBlock)
        ]
        self._kernels = [_Kernel(block, damping, pairs, self.tolerance) for block in self._blocks]

    def rows(self, objective: Objective, batch: Batch, power: float) -> list[Rows]:
        """The gradients of a batch's examples, weighed as :class:`~ihvp.Objective` rows are.

        ``power`` is that of :meth:`ihvp.Objective.batch_gradient_chunks`, here and in all of this package.
        """
        names = [block.name for block in self._blocks]
        found, factors = example_gradients(objective, batch, power, names)
        rows = [weight_rows(block, *found[block.name], factors) for block in self._blocks]
        for part in rows:
            if not all(map(algebra.all_finite, part if isinstance(part, tuple) else (part,))):
                raise NonFinite("A gradient of the examples")
        return rows

    def solved(self, rows: Sequence[Rows]) -> list[Rows]:
        """The left side of :meth:`products`."""
        return [kernel.solved(part) for kernel, part in zip(self._kernels, rows, strict=True)]

    def products(self, solved: Sequence[Rows], right: Sequence[Rows]) -> NDArray[np.float64]:
        """``(n_left, n_right)``."""
        terms = [kernel.products(*pair) for kernel, *pair in zip(self._kernels, solved, right, strict=True)]
        return np.asarray(sum(algebra.to_numpy(term).astype(np.float64) for term in terms))

    def own_products(self, rows: Sequence[Rows]) -> NDArray[np.float64]:
        """The products of each example with itself, ``(n,)``."""
        terms = [kernel.own_products(part) for kernel, part in zip(self._kernels, rows, strict=True)]
        return np.asarray(sum(algebra.to_numpy(term).astype(np.float64) for term in terms))


def example_gradients(
    objective: Objective, batch: Batch, power: float, names: Sequence[str]
) -> tuple[dict[str, tuple[Vector, Vector]], NDArray[np.float64]]:
    """What goes into each layer, the gradients by what comes out, and the factors of the examples, ``(B,)``.

    The layers of these ``names`` must be among them.
    """
    predict, loss = objective.require_predict()
    objective.require_additive(batch, any_weights=power == 0)
    model = opened(objective, predict, batch)
    gradients = model.pull_back(model.output_gradient(loss)[None])
    found = {
        layer.name: (inputs, gradient[0])
        for layer, inputs, gradient in zip(model.layers, model.inputs, gradients, strict=True)
    }
    require_used(names, found, predict)
    return found, objective.part_factors(batch, power)


def is_loss_of(objective: Objective, predict: object) -> bool:
    """Whether an objective is a loss of the outputs of this model."""
    return objective.output_loss is not None and objective.predict is predict


@dataclass
class _Terms:
    """``L = α βᵀ``, ``(d_out, R)`` and ``(d_in, R)``."""

    left: Vector
    right: Vector


class _Kernel:
    """The inverse of one layer's block."""

    def __init__(self, block: KroneckerBlock, damping: float, pairs: int, tolerance: float) -> None:
        self._block, self._values = block, 1.0 / (block.values + damping)
        self._terms: _Terms | None = None
        groups, d_out, d_in = block.values.shape
        # A singular value decomposition takes some 20 min(m, n) times the operations of one pair.
        if groups == 1 and pairs > 20 * min(d_out, d_in):
            self._terms = _low_rank(self._values[0], tolerance)

    def solved(self, rows: Rows) -> Rows:
        """Inverse products, ``(B, groups · d_out · d_in)``; with terms, rotated rows."""
        if isinstance(rows, tuple) and self._terms is not None:
            return self._rotated(rows)
        return self._multiplied(self._block.rotate(formed(rows)))

    def products(self, solved: Rows, right: Rows) -> Vector:
        if isinstance(solved, tuple) and isinstance(right, tuple):
            assert self._terms is not None
            u, v = self._rotated(right)
            alphas, betas = self._terms.left, self._terms.right
            terms = (_term(alphas[:, r], betas[:, r], solved, (u, v)) for r in range(alphas.shape[1]))
            return functools.reduce(operator.add, terms)
        left = self._multiplied(formed(solved)) if isinstance(solved, tuple) else solved
        if not isinstance(right, tuple):
            return left @ _flat(right).T
        # The fewer numbers: a gradient of each example on the right, or a vector for each pair.
        (u, v), (d_out, d_in) = right, self._values.shape[1:]
        each = min(d_out * d_in, len(left) * min(d_out, d_in))
        step = max(1, _NUMBERS // each)
        parts = [(u[i : i + step, :], v[i : i + step, :]) for i in range(0, len(u), step)]
        if each == d_out * d_in:
            return algebra.concatenate([left @ _flat(formed(part)).T for part in parts])
        matrices = array_api_compat.array_namespace(left).reshape(left, (-1, d_out, d_in))
        return algebra.concatenate([_pair_products(matrices, part) for part in parts])

    def own_products(self, rows: Rows) -> Vector:
        if isinstance(rows, tuple):
            return _own_products(self._values[0], *self._rotated(rows))
        xp = array_api_compat.array_namespace(self._values)
        return xp.sum(self._values * self._block.rotate(rows) ** 2, axis=(1, 2, 3))

    def _rotated(self, rows: tuple[Vector, Vector]) -> tuple[Vector, Vector]:
        assert self._block.q_in is not None  # its rows are formed
        return rows[0] @ self._block.q_out[0], rows[1] @ self._block.q_in[0]

    def _multiplied(self, rotated: Vector) -> Vector:
        return _flat(self._block.rotate_back(self._values, rotated))


@algebra.fused()
def _term(alpha: Vector, beta: Vector, left: tuple[Vector, Vector], right: tuple[Vector, Vector]) -> Vector:
    return ((left[0] * alpha) @ right[0].T) * ((left[1] * beta) @ right[1].T)


@algebra.fused()
def _pair_products(matrices: Vector, rows: tuple[Vector, Vector]) -> Vector:
    """``uᵢᵀ M_j vᵢ``, ``(n, B)``: the longer of the two sides is summed over first."""
    xp, (u, v) = array_api_compat.array_namespace(matrices), rows
    if matrices.shape[1] > matrices.shape[2]:
        return xp.sum((u @ matrices) * v, axis=2)
    return xp.sum((matrices @ v.T) * u.T, axis=1)


@algebra.fused()
def _own_products(values: Vector, u: Vector, v: Vector) -> Vector:
    xp = array_api_compat.array_namespace(values)
    return xp.sum((u**2 @ values) * v**2, axis=1)


def _low_rank(values: Vector, tolerance: float) -> _Terms | None:
    """So few terms that the rest is below the tolerance, if that saves half of the operations."""
    matrix = algebra.to_numpy(values).astype(np.float64)
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    rank = max(1, int(np.count_nonzero(s > tolerance * matrix.max())))
    if 2 * rank * sum(matrix.shape) > matrix.size:
        return None
    left, right = u[:, :rank] * s[:rank] ** 0.5, vt[:rank].T * s[:rank] ** 0.5
    return _Terms(algebra.as_like(left, values), algebra.as_like(right, values))


def weight_rows(
    block: KroneckerBlock, inputs: Vector, gradient: Vector, factors: NDArray[np.float64]
) -> Rows:
    """The gradients by one layer's weights, from what :func:`example_gradients` has for it."""
    xp, layer = array_api_compat.array_namespace(gradient), block.layer
    gradient = scale_rows(gradient, factors)
    if layer.groups == 1 and gradient.shape[1] == 1 and block.q_in is not None:
        return gradient[:, 0, 0, :], with_bias(layer, inputs)[:, 0, 0, :]
    if layer.one_hot:
        summed = np.zeros((len(factors), layer.d_in, layer.d_out), algebra.to_numpy(gradient).dtype)
        places = np.arange(len(factors))[:, None], algebra.to_numpy(inputs)
        np.add.at(summed, places, algebra.to_numpy(gradient)[:, :, 0, :])
        return xp.asarray(summed.transpose(0, 2, 1)[:, None], device=algebra.device(gradient))
    return weight_gradients(gradient, with_bias(layer, inputs))


def _flat(matrices: Vector) -> Vector:
    """``(B, groups, d_out, d_in)`` to ``(B, groups · d_out · d_in)``."""
    xp = array_api_compat.array_namespace(matrices)
    return xp.reshape(matrices, (matrices.shape[0], -1))


def formed(rows: Rows) -> Vector:
    """The gradients themselves, ``(B, groups, d_out, d_in)``."""
    if not isinstance(rows, tuple):
        return rows
    return rows[0][:, None, :, None] * rows[1][:, None, None, :]

"""Products of examples' gradients with an inverse in Kronecker factors, without the gradients themselves."""

from __future__ import annotations

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
from ihvp.kronecker.factors import with_bias
from ihvp.kronecker.structured import KFAC
from ihvp.objective import Objective

Rotated: TypeAlias = "tuple[Vector, Vector] | Vector"
"""The gradients of B examples by a layer's weights, in its eigenvectors' basis.

``(B, d_out)`` and ``(B, d_in)`` of which they are the outer products, or themselves, ``(B, groups · d_out ·
d_in)``.
"""

# Outer products of so many numbers are formed at once (64 MiB in float32).
_NUMBERS = 1 << 24


class Contraction:
    r"""``∇C_i · (K + λI)⁻¹ ∇L_j`` of many examples i and j, layer by layer.

    In the eigenvectors' basis of a layer whose weights no places share, a gradient is an outer product u vᵀ,
    and the inverse multiplies it entry by entry with :math:`L = 1 / (\Lambda + \lambda)`. With
    :math:`L = \sum_r \alpha_r \beta_r^\top` the product of two is
    :math:`\sum_r (u_i \cdot \alpha_r \cdot u_j)(v_i \cdot \beta_r \cdot v_j)`: as :math:`\lambda L` is close
    to 1 where the curvature is small, few terms are enough. They are taken until the rest is below √ε / λ, so
    that an inverse product is right to √ε ‖∇L‖ / λ, as by a solve with that residual.

    Parameters
    ----------
    operator : KFAC
        Without parameters outside its layers.
    damping : float
        λ.
    pairs : int
        How many products will be asked for: terms pay from some number on.
    """

    def __init__(self, operator: KFAC, damping: float, pairs: int) -> None:
        self.operator = operator
        self.tolerance = operator.space.eps**0.5
        self._blocks: list[KroneckerBlock] = [
            block for block in operator.blocks if isinstance(block, KroneckerBlock)
        ]
        self._kernels = [_Kernel(block, damping, pairs, self.tolerance) for block in self._blocks]

    def rotated(self, objective: Objective, batch: Batch, power: float) -> list[Rotated]:
        """The gradients of a batch's examples, weighed as :class:`~ihvp.Objective` rows are.

        Parameters
        ----------
        objective : Objective
            With ``predict``: the loss.
        batch : Batch
        power : float
            Of the weights, as for :meth:`ihvp.Objective.batch_gradient_chunks`.
        """
        names = [block.name for block in self._blocks]
        found, factors = example_gradients(objective, batch, power, names)
        rows = [_rotate(block, *found[block.name], factors) for block in self._blocks]
        for part in rows:
            if not all(map(algebra.all_finite, part if isinstance(part, tuple) else (part,))):
                raise NonFinite("A gradient of the examples")
        return rows

    def solves(self, left: Sequence[Rotated]) -> bool:
        """Whether :meth:`products` has an answer: always, in closed form."""
        return True

    def products(self, left: Sequence[Rotated], right: Sequence[Rotated]) -> NDArray[np.float64]:
        """``(n_left, n_right)``."""
        terms = [kernel.products(*pair) for kernel, *pair in zip(self._kernels, left, right, strict=True)]
        return np.asarray(sum(algebra.to_numpy(term).astype(np.float64) for term in terms))

    def own_products(self, rows: Sequence[Rotated]) -> NDArray[np.float64]:
        """The products of each example with itself, ``(n,)``."""
        terms = [kernel.own_products(part) for kernel, part in zip(self._kernels, rows, strict=True)]
        return np.asarray(sum(algebra.to_numpy(term).astype(np.float64) for term in terms))


def example_gradients(
    objective: Objective, batch: Batch, power: float, names: Sequence[str]
) -> tuple[dict[str, tuple[Vector, Vector]], NDArray[np.float64]]:
    """What goes into each layer, the gradients by what comes out, and the factors of the examples, ``(B,)``.

    Parameters
    ----------
    objective : Objective
        With ``predict``: the loss.
    batch : Batch
    power : float
        Of the weights, as for :meth:`ihvp.Objective.batch_gradient_chunks`.
    names : sequence of str
        Of the layers that must be among them.
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


@dataclass
class _Terms:
    """``L = α βᵀ``, ``(d_out, R)`` and ``(d_in, R)``."""

    left: Vector
    right: Vector


class _Kernel:
    """The inverse eigenvalues of one layer."""

    def __init__(self, block: KroneckerBlock, damping: float, pairs: int, tolerance: float) -> None:
        self._values = 1.0 / (block.values + damping)
        self._terms: _Terms | None = None
        groups, d_out, d_in = block.values.shape
        # A singular value decomposition takes some 20 min(m, n) times the operations of one pair.
        if groups == 1 and pairs > 20 * min(d_out, d_in):
            self._terms = _low_rank(self._values[0], tolerance)

    def products(self, left: Rotated, right: Rotated) -> Vector:
        if self._terms is not None and isinstance(left, tuple) and isinstance(right, tuple):
            total: Vector = None
            for r in range(self._terms.left.shape[1]):
                part = _term(self._terms.left[:, r], self._terms.right[:, r], left, right)
                total = part if total is None else total + part
            return total
        xp = array_api_compat.array_namespace(self._values)
        weights = xp.reshape(self._values, (-1,))
        weighed, count, parts = _formed(left) * weights, _count(right), []
        step = max(1, _NUMBERS // weights.shape[0])
        for start in range(0, count, step):
            parts.append(weighed @ _formed(right, slice(start, start + step)).T)
        return parts[0] if len(parts) == 1 else xp.concat(parts, axis=1)

    def own_products(self, rows: Rotated) -> Vector:
        if isinstance(rows, tuple):
            return _own_products(self._values[0], rows)
        xp = array_api_compat.array_namespace(self._values)
        return rows**2 @ xp.reshape(self._values, (-1,))


@algebra.fused()
def _term(alpha: Vector, beta: Vector, left: tuple[Vector, Vector], right: tuple[Vector, Vector]) -> Vector:
    return ((left[0] * alpha) @ right[0].T) * ((left[1] * beta) @ right[1].T)


@algebra.fused()
def _own_products(values: Vector, rows: tuple[Vector, Vector]) -> Vector:
    xp = array_api_compat.array_namespace(values)
    return xp.sum((rows[0] ** 2 @ values) * rows[1] ** 2, axis=1)


def _low_rank(values: Vector, tolerance: float) -> _Terms | None:
    """So few terms that the rest is below the tolerance, if that saves half of the operations."""
    matrix = algebra.to_numpy(values).astype(np.float64)
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    rank = max(1, int(np.count_nonzero(s > tolerance * matrix.max())))
    if 2 * rank * sum(matrix.shape) > matrix.size:
        return None
    left, right = u[:, :rank] * s[:rank] ** 0.5, vt[:rank].T * s[:rank] ** 0.5
    return _Terms(algebra.as_like(left, values), algebra.as_like(right, values))


def _rotate(block: KroneckerBlock, inputs: Vector, gradient: Vector, factors: NDArray[np.float64]) -> Rotated:
    xp, layer = array_api_compat.array_namespace(gradient), block.layer
    gradient = gradient * algebra.as_like(factors, gradient)[:, None, None, None]
    if layer.groups == 1 and gradient.shape[1] == 1 and block.q_in is not None:
        return gradient[:, 0, 0, :] @ block.q_out[0], with_bias(layer, inputs)[:, 0, 0, :] @ block.q_in[0]
    if layer.one_hot:
        summed = np.zeros((len(factors), layer.d_in, layer.d_out), algebra.to_numpy(gradient).dtype)
        places = np.arange(len(factors))[:, None], algebra.to_numpy(inputs)
        np.add.at(summed, places, algebra.to_numpy(gradient)[:, :, 0, :])
        matrices = xp.asarray(summed.transpose(0, 2, 1)[:, None], device=algebra.device(gradient))
    else:
        return _rotated_sums(gradient, with_bias(layer, inputs), block.q_out, block.q_in)
    rotated = block.rotate(matrices)
    return xp.reshape(rotated, (rotated.shape[0], -1))


@algebra.fused()
def _rotated_sums(gradient: Vector, inputs: Vector, q_out: Vector, q_in: Vector) -> Vector:
    """``Q_Bᵀ (Σ_s g aᵀ) Q_A``, ``(B, groups · d_out · d_in)``."""
    xp = array_api_compat.array_namespace(gradient)
    g, a = (xp.permute_dims(z, (0, 2, 1, 3)) for z in (gradient, inputs))
    (places, d_out), d_in = g.shape[2:], a.shape[-1]
    if places * (d_out**2 + d_in**2) < d_out * d_in * (d_out + d_in):
        # The rows of the places are fewer than those of the matrix.
        rotated = xp.matrix_transpose(g @ q_out) @ (a @ q_in)
    else:
        rotated = xp.matrix_transpose(q_out) @ (xp.matrix_transpose(g) @ a) @ q_in
    return xp.reshape(rotated, (rotated.shape[0], -1))


def _formed(rows: Rotated, part: slice = slice(None)) -> Vector:
    """The gradients themselves, ``(b, d_out d_in)``."""
    if not isinstance(rows, tuple):
        return rows[part, :]
    u, v = rows[0][part, :], rows[1][part, :]
    outer = u[:, :, None] * v[:, None, :]
    return array_api_compat.array_namespace(outer).reshape(outer, (outer.shape[0], -1))


def _count(rows: Rotated) -> int:
    return int((rows[0] if isinstance(rows, tuple) else rows).shape[0])

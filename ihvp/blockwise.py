"""The diagonal blocks of any curvature matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from ihvp.backend import Vector
from ihvp.errors import InvalidOption
from ihvp.kronecker.blocks import DenseBlock, eigenvectors
from ihvp.kronecker.structured import BlockStructured
from ihvp.objective import Objective
from ihvp.objective.entries import Entries
from ihvp.objective.restricted import parts_of
from ihvp.operators.base import LinearOperator, check_operator
from ihvp.solvers import CG, solve

# Blocks up to this size are formed. On a processor a factorisation of this size takes about a second.
_DENSE = 2048


class BlockDiagonal(LinearOperator):
    r"""A matrix without its entries between different parameters.

    .. math:: \operatorname{diag}_b\, (E_b^\top A\, E_b)

    with :math:`E_b` the columns of the identity that belong to block b. Blocks of up to 2,048 entries are
    formed, by one product for each entry, when first solved with; larger ones are solved with by certified
    iterations.

    Parameters
    ----------
    operator : LinearOperator
        A: an ``ihvp.Hessian``, an ``ihvp.GaussNewton``, an ``ihvp.OPG`` …
    by : {"parameter", "layer"}, or mapping of str to slice
        One block for each array of the parameters, for those of each layer together, or for each of these
        slices, which cover the flat vector.

    Raises
    ------
    InvalidOption
        The blocks do not cover each entry once, or the operator does not know its objective.
    MissingCapability
        The backend does not name its parameters.

    Examples
    --------
    >>> import numpy as np
    >>> import ihvp
    >>> A = ihvp.Dense(np.array([[2.0, 1.0], [1.0, 4.0]]))
    >>> B = ihvp.BlockDiagonal(A, by={"first": slice(0, 1), "second": slice(1, 2)})
    >>> ihvp.solve(B, np.array([2.0, 4.0])).x
    array([1., 1.])
    """

    def __init__(
        self, operator: LinearOperator, by: Literal["parameter", "layer"] | Mapping[str, slice] = "parameter"
    ) -> None:
        check_operator(operator)
        super().__init__(operator.space)
        self.operator, self.blocks = operator, _blocks(operator, by)
        places = sorted((place.start, place.stop) for parts in self.blocks.values() for place in parts)
        if [0, *(stop for _, stop in places)] != [*(start for start, _ in places), self.space.size]:
            raise InvalidOption("by", by, f"slices that cover 0 to {self.space.size:,}, each entry once")
        self._parts = [_Block(operator, parts) for parts in self.blocks.values()]

    def verify(self) -> None:
        self.operator.verify()

    def product_error(self, v: Vector) -> float:
        return self.operator.product_error(v)

    def apply(self, v: Vector) -> Vector:
        return self._join(v, [part.apply(part.entries.of(v)) for part in self._parts])

    def solve_damped(self, v: Vector, damping: float) -> Vector:
        """``(A + λI)⁻¹ v`` of a flat native vector or block, block by block."""
        return self._join(v, [part.solve_damped(part.entries.of(v), damping) for part in self._parts])

    def is_singular(self, damping: float) -> bool:
        """Whether a formed block of ``A + λI`` has an eigenvalue that is zero up to rounding."""
        return any(part.is_singular(damping) for part in self._parts)

    def _join(self, v: Vector, found: list[Vector]) -> Vector:
        pieces = {
            place.start: vector[here]
            for part, vector in zip(self._parts, found, strict=True)
            for place, here in part.entries.places
        }
        return self.space.xp.concat([pieces[start] for start in sorted(pieces)], axis=0)


class _Block(LinearOperator):
    """``Eᵀ A E`` for the entries of one block."""

    def __init__(self, operator: LinearOperator, places: Sequence[slice]) -> None:
        space, self.entries = operator.space, Entries(places, operator.space.size)
        own = replace(space, size=self.entries.count, backend=None, params=None)
        super().__init__(own)
        self.operator = operator
        self._formed: DenseBlock | None = None

    def apply(self, v: Vector) -> Vector:
        return self.entries.of(self.operator.apply(self.entries.within(v)))

    def solve_damped(self, v: Vector, damping: float) -> Vector:
        if self.space.size > _DENSE:
            return solve(self, v, damping, solver=CG(rtol=self.space.product_eps**0.5)).x
        return BlockStructured(self.space, [self._dense()]).solve_damped(v, damping)

    def is_singular(self, damping: float) -> bool:
        return self.space.size <= _DENSE and BlockStructured(self.space, [self._dense()]).is_singular(damping)

    def _dense(self) -> DenseBlock:
        if self._formed is None:
            dense = self.to_dense()
            pairs = eigenvectors(dense, dense, definite=False)
            self._formed = DenseBlock("block", slice(0, self.space.size), *pairs)
        return self._formed


def _blocks(operator: LinearOperator, by: str | Mapping[str, slice]) -> dict[str, list[slice]]:
    """The entries of each block, in order."""
    if isinstance(by, Mapping):
        return {name: [place] for name, place in by.items()}
    objective = getattr(operator, "objective", None)
    if not isinstance(objective, Objective):
        raise InvalidOption("by", by, "a mapping of names to slices, for an operator without an objective")
    return parts_of(objective.blocks, by)

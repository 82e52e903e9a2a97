"""Linear maps of a model whose weights are parts of the flat vector of parameters."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import array_api_compat


@dataclass(frozen=True)
class Layer:
    """A linear map ``y = W x + b`` whose weights are parameters, used at S places of every example.

    The weight is a contiguous part of the flat vector: an array of ``shape``, which in the order ``axes`` of
    its axes is ``(groups, d_out, d_in)``. A convolution is such a map of the patches of its input; one in
    groups is as many maps side by side. An embedding maps the unit vectors that its indices stand for.
    """

    name: str  # the layer's, in the framework's own naming
    start: int  # where in the flat vector the weight begins
    shape: tuple[int, ...]  # the weight's, as it lies in the flat vector
    axes: tuple[int, ...]  # the permutation of the axes after which it reads (groups · d_out, d_in)
    # d_in, d_out: of one group
    d_in: int
    d_out: int
    groups: int = 1
    # Where in the flat vector the groups · d_out numbers of b begin; None without them.
    bias: int | None = None
    one_hot: bool = False  # whether inputs are the indices of unit vectors

    @property
    def stop(self) -> int:
        """Where in the flat vector the weight ends."""
        return self.start + prod(self.shape)

    @property
    def slices(self) -> list[slice]:
        """The parts of the flat vector that are the layer's: the weight, and the bias if there is one."""
        parts = [slice(self.start, self.stop)]
        if self.bias is not None:
            parts.append(slice(self.bias, self.bias + self.groups * self.d_out))
        return parts

    def read(self, v: Any) -> Any:
        """Its entries of a block ``(P, k)`` as matrices ``(k, groups, d_out, d_in)``, b the last column."""
        k, xp = v.shape[1], array_api_compat.array_namespace(v)
        weight = xp.reshape(v[self.start : self.stop, :].T, (k, *self.shape))
        weight = xp.permute_dims(weight, (0, *(1 + axis for axis in self.axes)))
        matrices = xp.reshape(weight, (k, self.groups, self.d_out, self.d_in))
        if self.bias is None:
            return matrices
        bias = v[self.slices[1], :].T
        return xp.concat([matrices, xp.reshape(bias, (k, self.groups, self.d_out, 1))], axis=-1)

    def parts(self, matrices: Any) -> list[Any]:
        """The inverse of :meth:`read`: for each of :attr:`slices` its entries ``(…, k)``."""
        k, xp = matrices.shape[0], array_api_compat.array_namespace(matrices)
        permuted = tuple(self.shape[axis] for axis in self.axes)
        weight = xp.reshape(matrices[..., : self.d_in], (k, *permuted))
        inverse = sorted(range(len(self.axes)), key=self.axes.__getitem__)
        weight = xp.permute_dims(weight, (0, *(1 + axis for axis in inverse)))
        found = [xp.reshape(weight, (k, -1)).T]
        if self.bias is not None:
            found.append(xp.reshape(matrices[..., -1], (k, -1)).T)
        return found

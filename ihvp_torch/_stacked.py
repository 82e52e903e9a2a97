"""Linear operations on many tensors of one shape at once.

A processor is fastest where all of them share few large operations, and where none of them is copied into
another order in between. So the axis along which they are stacked stays where an operation leaves it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ihvp_torch._tree import leaves_of, map_leaves

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Place:
    """Stands for a result among the arguments of an operation."""

    number: int


class Stacked:
    """k tensors of one shape, stacked along ``axis`` of ``tensor``.

    What is ``spent`` nobody reads after an operation, which may write its result over it.
    """

    __slots__ = ("axis", "spent", "tensor")

    def __init__(self, tensor: Tensor, axis: int) -> None:
        self.tensor, self.axis, self.spent = tensor, axis, False

    @property
    def ndim(self) -> int:
        """The axes of each."""
        return int(self.tensor.ndim) - 1

    @property
    def shape(self) -> list[int]:
        """That of each."""
        shape = list(self.tensor.shape)
        del shape[self.axis]
        return shape

    def first(self) -> Tensor:
        """``(k, *shape)``."""
        return self.tensor.movedim(self.axis, 0) if self.axis else self.tensor

    def with_axes(self, count: int) -> Stacked:
        """The same with axes of length 1 in front, ``count`` in all."""
        more = count - self.ndim
        if more <= 0:
            return self
        wider = Stacked(self.tensor[(None,) * more], self.axis + more)
        wider.spent = self.spent
        return wider

    def along(self, axis: int) -> Tensor:
        """Stacked along another axis."""
        return self.tensor if axis == self.axis else self.tensor.movedim(self.axis, axis)

    def axis_of(self, dim: int) -> int:
        """The axis of ``tensor`` that is the axis ``dim`` of each."""
        dim %= self.ndim
        return dim + (dim >= self.axis)


def fill(tree: Any, values: Sequence[Any]) -> Any:
    """Nested arguments with values in their places."""
    return map_leaves(lambda leaf: values[leaf.number] if isinstance(leaf, Place) else leaf, tree)


def apply(function: Any, arguments: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """The operation on each of the k: a Stacked, or a list of the results."""
    rule = _RULES.get(function)
    result = NotImplemented if rule is None else rule(*arguments, **options)
    if result is not NotImplemented:
        return result
    stacked = [leaf for leaf in leaves_of((arguments, options)) if isinstance(leaf, Stacked)]
    tensors, axes = tuple(x.tensor for x in stacked), tuple(x.axis for x in stacked)
    kinds: list[bool] = []  # which of the results are tensors

    def one(*parts: Tensor) -> tuple[Tensor, ...]:
        following = iter(parts)
        result = function(*_given(arguments, following), **_given(options, following))
        results = result if isinstance(result, (tuple, list)) else (result,)
        kinds[:] = [part is not None for part in results]
        return tuple(part for part in results if part is not None)

    # Where it has no form for many, torch.vmap would say so in a warning.
    if torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "FuncTorchBatched"):
        found = torch.func.vmap(one, in_dims=axes)(*tensors)
    else:
        each = [one(*parts) for parts in zip(*map(torch.unbind, tensors, axes), strict=True)]
        found = [torch.stack(parts) for parts in zip(*each, strict=True)]
    following = iter(found)
    return [Stacked(next(following), 0) if there else None for there in kinds]


def _given(tree: Any, parts: Iterator[Tensor]) -> Any:
    """Nested arguments with the next of ``parts`` in the place of each Stacked."""
    return map_leaves(lambda leaf: next(parts) if isinstance(leaf, Stacked) else leaf, tree)


def _merged(tensor: Tensor, axis: int, inner: int) -> tuple[Tensor, list[int], int]:
    """A matrix ``(all other axes, inner)``; the other axes' lengths in the order taken, and where k is.

    ``tensor`` has three axes, of which ``axis`` is k. Of both orders it takes the one without a copy.
    """
    other = 3 - axis - inner
    outer, within = (axis, other) if tensor.stride(axis) >= tensor.stride(other) else (other, axis)
    shape = [tensor.shape[outer], tensor.shape[within]]
    return tensor.permute(outer, within, inner).reshape(-1, tensor.shape[inner]), shape, int(within == axis)


def _mm(left: Any, right: Any) -> Any:
    if isinstance(left, Stacked) and isinstance(right, Tensor):
        matrix, shape, place = _merged(left.tensor, left.axis, left.axis_of(1))
        return Stacked(torch.mm(matrix, right).view(*shape, right.shape[1]), place)
    if isinstance(right, Stacked) and isinstance(left, Tensor):
        matrix, shape, place = _merged(right.tensor, right.axis, right.axis_of(0))
        return Stacked(torch.mm(left, matrix.T).view(left.shape[0], *shape), place + 1)
    return NotImplemented


def _bmm(left: Any, right: Any) -> Any:
    if isinstance(left, Stacked) and isinstance(right, Tensor):
        matrices = left.along(1)
        product = torch.bmm(matrices.flatten(1, 2), right)
        return Stacked(product.unflatten(1, matrices.shape[1:3]), 1)
    if isinstance(right, Stacked) and isinstance(left, Tensor):
        matrices = right.along(2)
        return Stacked(torch.bmm(left, matrices.flatten(2, 3)).unflatten(2, matrices.shape[2:4]), 2)
    return NotImplemented


def _multiply(left: Any, right: Any) -> Any:
    if isinstance(left, Stacked) and isinstance(right, Stacked):
        return NotImplemented
    stacked, factor = (left, right) if isinstance(left, Stacked) else (right, left)
    return _scaled(torch.mul, stacked, factor)


def _divide(left: Any, right: Any) -> Any:
    return NotImplemented if isinstance(right, Stacked) else _scaled(torch.div, left, right)


def _scaled(operation: Callable[..., Tensor], stacked: Stacked, factor: Any) -> Stacked:
    if isinstance(factor, Tensor) and factor.ndim:
        stacked = stacked.with_axes(factor.ndim)
        factor = _beside(factor, stacked)
    return Stacked(operation(stacked.tensor, factor, out=_over(stacked, factor)), stacked.axis)


def _over(stacked: Stacked, other: Any) -> Tensor | None:
    """A spent operand, where the result of an operation with another has its shape and dtype."""
    x = stacked.tensor
    if not stacked.spent or 0 in x.stride():
        return None
    if isinstance(other, Tensor) and (
        other.dtype != x.dtype or any(n not in (1, m) for n, m in zip(other.shape, x.shape, strict=False))
    ):
        return None
    return x


def _beside(constant: Tensor, stacked: Stacked) -> Tensor:
    """A tensor that all of the k meet, in a shape that broadcasts against them."""
    return constant[(None,) * (stacked.ndim - constant.ndim)].unsqueeze(stacked.axis)


def _add(left: Any, right: Any, alpha: Any = 1) -> Any:
    return _sum_of(torch.add, left, right, alpha)


def _subtract(left: Any, right: Any, alpha: Any = 1) -> Any:
    return _sum_of(torch.sub, left, right, alpha)


def _sum_of(operation: Callable[..., Tensor], left: Any, right: Any, alpha: Any) -> Any:
    if isinstance(left, Stacked) and isinstance(right, Stacked):
        count = max(left.ndim, right.ndim)
        left, right = left.with_axes(count), right.with_axes(count)
        # What is an expansion, or else the smaller one, is read in the order of the other.
        axis = max(left, right, key=lambda x: (0 not in x.tensor.stride(), x.tensor.numel())).axis
        one, other = left.along(axis), right.along(axis)
        over = _over(left, other) if axis == left.axis else None
        over = _over(right, one) if over is None and axis == right.axis else over
        return Stacked(operation(one, other, alpha=alpha, out=over), axis)
    return NotImplemented


def _sum(x: Stacked, dims: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Stacked:
    axes = [x.axis_of(dim) for dim in dims or range(x.ndim)] if x.ndim else []
    if not axes:
        return x if dtype is None else Stacked(x.tensor.to(dtype), x.axis)
    axis = x.axis if keepdim else x.axis - sum(each < x.axis for each in axes)
    return Stacked(x.tensor.sum(axes, keepdim, dtype=dtype), axis)


def _same(x: Stacked, **options: Any) -> Stacked:
    return x


def _each(function: Any) -> Callable[..., Any]:
    """An operation on each entry by itself."""
    return lambda x, *arguments, **options: Stacked(function(x.tensor, *arguments, **options), x.axis)


def _transpose(x: Stacked, first: int = 0, second: int = 1) -> Stacked:
    return Stacked(x.tensor.transpose(x.axis_of(first), x.axis_of(second)), x.axis) if x.ndim > 1 else x


def _permute(x: Stacked, dims: Sequence[int]) -> Stacked:
    return Stacked(x.first().permute(0, *(dim % x.ndim + 1 for dim in dims)), 0)


def _view(x: Stacked, shape: Sequence[int]) -> Stacked:
    old = x.shape
    total = math.prod(old)
    known = math.prod(length for length in shape if length != -1)
    shape = [total // max(known, 1) if length == -1 else length for length in shape]
    if shape == old:
        return x
    before, count = math.prod(old[: x.axis]), x.tensor.shape[x.axis]
    for axis in range(len(shape) + 1):
        if math.prod(shape[:axis]) == before:
            return Stacked(x.tensor.reshape(*shape[:axis], count, *shape[axis:]), axis)
    return Stacked(x.first().reshape(count, *shape), 0)


def _expand(x: Stacked, shape: Sequence[int], *, implicit: bool = False) -> Stacked:
    x = x.with_axes(len(shape))
    sizes = list(shape)
    sizes.insert(x.axis, -1)
    return Stacked(x.tensor.expand(sizes), x.axis)


def _unsqueeze(x: Stacked, dim: int) -> Stacked:
    dim %= x.ndim + 1
    return Stacked(x.tensor.unsqueeze(dim + (dim > x.axis)), x.axis + (dim <= x.axis))


def _squeeze(x: Stacked, dim: int) -> Stacked:
    if not x.ndim or x.tensor.shape[x.axis_of(dim)] != 1:
        return x
    at = x.axis_of(dim)
    return Stacked(x.tensor.squeeze(at), x.axis - (at < x.axis))


def _select(x: Stacked, dim: int, index: int) -> Stacked:
    at = x.axis_of(dim)
    return Stacked(x.tensor.select(at, index), x.axis - (at < x.axis))


def _slice(x: Stacked, dim: int = 0, *arguments: Any) -> Stacked:
    return Stacked(aten.slice.Tensor(x.tensor, x.axis_of(dim), *arguments), x.axis)


def _split(x: Stacked, sizes: Sequence[int], dim: int = 0) -> list[Stacked]:
    return [Stacked(part, x.axis) for part in x.tensor.split_with_sizes(sizes, x.axis_of(dim))]


def _cat(parts: Sequence[Any], dim: int = 0) -> Any:
    if not all(isinstance(part, Stacked) for part in parts):
        return NotImplemented
    return Stacked(torch.cat([part.first() for part in parts], dim % parts[0].ndim + 1), 0)


def _tanh_backward(x: Any, output: Any) -> Any:
    return NotImplemented if isinstance(output, Stacked) else _scaled(torch.mul, x, 1 - output * output)


def _sigmoid_backward(x: Any, output: Any) -> Any:
    return NotImplemented if isinstance(output, Stacked) else _scaled(torch.mul, x, output * (1 - output))


def _threshold_backward(x: Any, value: Any, threshold: Any) -> Any:
    if isinstance(value, Stacked):
        return NotImplemented
    return _scaled(torch.mul, x, (value > threshold).to(x.tensor.dtype))


def _log_softmax_backward(x: Any, output: Any, dim: int, dtype: Any) -> Any:
    if isinstance(output, Stacked) or not output.ndim or x.tensor.dtype != dtype:
        return NotImplemented
    total = x.tensor.sum(x.axis_of(dim), keepdim=True)
    over = _over(x, None)
    return Stacked(torch.addcmul(x.tensor, total, _beside(output.exp(), x), value=-1, out=over), x.axis)


def _softmax_backward(x: Any, output: Any, dim: int, dtype: Any) -> Any:
    if isinstance(output, Stacked) or not output.ndim or x.tensor.dtype != dtype:
        return NotImplemented
    beside = _beside(output, x)
    product = x.tensor * beside
    total = product.sum(x.axis_of(dim), keepdim=True)
    return Stacked(product.addcmul_(total, beside, value=-1), x.axis)


def _convolution(x: Any, weight: Any, bias: Any, *how: Any) -> Any:
    *_, transposed, _, groups = how
    if transposed or groups != 1:
        return NotImplemented
    if isinstance(x, Stacked) and isinstance(weight, Tensor) and not isinstance(bias, Stacked):
        # As many examples more.
        images = x.along(1)
        found = aten.convolution.default(images.flatten(0, 1), weight, bias, *how)
        return Stacked(found.unflatten(0, images.shape[:2]), 1)
    if isinstance(weight, Stacked) and isinstance(x, Tensor) and bias is None:
        # As many channels more.
        kernels = weight.first()
        found = aten.convolution.default(x, kernels.flatten(0, 1), None, *how)
        return Stacked(found.unflatten(1, kernels.shape[:2]), 1)
    return NotImplemented


def _convolution_backward(gradient: Any, x: Any, weight: Any, sizes: Any, *how: Any) -> Any:
    *around, transposed, padding, groups, wanted = how
    constant = isinstance(x, Tensor) and isinstance(weight, Tensor)
    if not isinstance(gradient, Stacked) or not constant or transposed or groups != 1:
        return NotImplemented

    def backward(images: Tensor, given: Tensor, kernels: Tensor, *wanted: bool) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = aten.convolution_backward.default(
            images, given, kernels, None, *around, transposed, padding, groups, wanted
        )
        return found

    images = gradient.along(1)  # (B, k, channels, …)
    shape, results = images.shape[:2], list[Stacked | None]([None, None, None])
    if wanted[0]:
        given = x.new_empty(1).expand(shape[0] * shape[1], *x.shape[1:])
        found = backward(images.flatten(0, 1), given, weight, True, False, False)[0]
        results[0] = Stacked(found.unflatten(0, shape), 1)
    if wanted[1]:
        kernels = weight.new_empty(1).expand(shape[1] * len(weight), *weight.shape[1:])
        found = backward(images.flatten(1, 2), x, kernels, False, True, False)[1]
        results[1] = Stacked(found.unflatten(0, (shape[1], len(weight))), 0)
    if wanted[2]:
        results[2] = Stacked(images.sum([0, *range(3, images.ndim)]), 0)
    return results


_RULES: dict[Any, Callable[..., Any]] = {
    aten.mm.default: _mm,
    aten.bmm.default: _bmm,
    aten.mul.Tensor: _multiply,
    aten.mul.Scalar: _multiply,
    aten.div.Tensor: _divide,
    aten.div.Scalar: _divide,
    aten.add.Tensor: _add,
    aten.sub.Tensor: _subtract,
    aten.neg.default: _each(torch.neg),
    aten._to_copy.default: _each(aten._to_copy.default),
    aten.sum.default: _sum,
    aten.sum.dim_IntList: _sum,
    aten.detach.default: _same,
    aten.alias.default: _same,
    aten.clone.default: _same,
    aten.t.default: _transpose,
    aten.transpose.int: _transpose,
    aten.permute.default: _permute,
    aten.view.default: _view,
    aten._unsafe_view.default: _view,
    aten.reshape.default: _view,
    aten.expand.default: _expand,
    aten.unsqueeze.default: _unsqueeze,
    aten.squeeze.dim: _squeeze,
    aten.select.int: _select,
    aten.slice.Tensor: _slice,
    aten.split_with_sizes.default: _split,
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
    aten.cat.default: _cat,
    aten.tanh_backward.default: _tanh_backward,
    aten.sigmoid_backward.default: _sigmoid_backward,
    aten.threshold_backward.default: _threshold_backward,
    aten._log_softmax_backward_data.default: _log_softmax_backward,
    aten._softmax_backward_data.default: _softmax_backward,
}
"""By operation, its form for stacked tensors, which may answer NotImplemented."""

"""The linear layers of a model, as autograd recorded them: no hooks, and nothing that a module must be."""

from __future__ import annotations

import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from ihvp.layers import Layer
from ihvp_torch._curvature import curvature
from ihvp_torch._derivatives import Function, flat_gradient, recording, scalar
from ihvp_torch._fallback import Memory
from ihvp_torch._parameters import Call
from ihvp_torch._tree import fill, leaves_of
from ihvp_torch._vector import multiply, vector_dtype

# Rows of one example differ from a multiple of each other by less than this part of the rows.
_APART = 0.05


def floating(tree: Any) -> list[Tensor]:
    """The tensors of real floating numbers in what a prediction returned: its outputs."""
    return [leaf for leaf in leaves_of(tree) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


@functools.lru_cache(maxsize=16)
def cotangent_loss(predict: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Tensor]:
    """``⟨outputs, cotangents⟩`` as a loss of a batch ``(batch, cotangents)``."""

    def loss(params: Any, batch: Any) -> Tensor:
        inputs, cotangents = batch
        outputs = floating(predict(params, inputs))
        return torch.stack(
            [(output * cotangent).sum() for output, cotangent in zip(outputs, cotangents, strict=True)]
        ).sum()

    return loss


@dataclass
class Use:
    """One use of a layer: what went in, and where the derivative by what came out is to be had."""

    layer: Layer
    inputs: Callable[[], Tensor]
    output: GradientEdge
    arrange: Callable[[Tensor], Tensor]
    """Brings derivatives by the output ``(V, …)`` into the form ``(V, rows, groups, d_out)``."""
    weight: str
    """The weight's own name."""
    order: Tensor | None = None
    """Where the rows of each example are, one example after another; None where they come so."""


class _Inputs(Sequence[Tensor]):
    """What goes into each layer, made when it is asked for: patches are many times the size of an image."""

    def __init__(self, uses: Sequence[Sequence[Use]], arrange: Callable[[Tensor, Use], Tensor]) -> None:
        self._uses, self._arrange = uses, arrange

    def __len__(self) -> int:
        return len(self._uses)

    def __getitem__(self, index: Any) -> Any:
        return _side_by_side([self._arrange(use.inputs()[None], use)[0] for use in self._uses[index]], 1)


def _side_by_side(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


class OpenedModel:
    """The graph of one forward pass, and its linear layers.

    Parameters
    ----------
    predict : Function
        Its value is a tensor, or a tree of tensors.
    names : sequence of str
        Of the tensors that it is a function of.
    batch : Batch
        What losses of the outputs are given.
    memory : Memory
        Which way of differentiating a loss of the outputs worked.
    """

    def __init__(self, predict: Function, names: Sequence[str], batch: Any, memory: Memory) -> None:
        leaves = predict.leaves()
        self._call: Call = predict.bind(leaves)
        self._tree = self._call(predict.evaluate)
        self._outputs = floating(self._tree)
        self._batch, self._memory = batch, memory
        self._like = torch.empty(0, dtype=vector_dtype(leaves), device=leaves[0].device)
        self._coarsest = max((leaf.dtype for leaf in leaves), key=lambda dtype: torch.finfo(dtype).eps)
        self.shapes = [tuple(output.shape) for output in self._outputs]
        self._uses: Sequence[Sequence[Use]] = _grouped(_uses(self._outputs, leaves, names))
        self._arranged = False

    @property
    def layers(self) -> list[Layer]:
        return [group[0].layer for group in self._known()]

    @property
    def inputs(self) -> Sequence[Tensor]:
        return _Inputs(self._known(), self._by_example)

    def outputs(self) -> Tensor:
        return torch.cat([output.detach().reshape(-1).to(self._like.dtype) for output in self._outputs])

    def pull_back(self, cotangents: Tensor) -> list[Tensor]:
        if not self._arranged and (pulled := self._as_usual(cotangents)) is not None:
            self._arranged = True
        else:
            pulled = self._pull(self._known(), cotangents)
        return [
            _side_by_side([self._by_example(use.arrange(next(pulled)), use) for use in group], 2)
            for group in self._uses
        ]

    @recording
    def output_gradient(self, loss: Callable[[Any, Any], Any]) -> Tensor:
        return flat_gradient(self._loss(loss)).to(self._like.dtype)

    @recording
    def output_hvp(self, loss: Callable[[Any, Any], Any], v: Tensor) -> Tensor:
        return multiply(curvature(self._loss(loss), loss, self._memory), v).to(self._like.dtype)

    def _loss(self, loss: Callable[[Any, Any], Any]) -> Function:
        floats = [output.detach() for output in self._outputs]
        places = {id(output): i for i, output in enumerate(self._outputs)}

        def bind(tensors: Sequence[Tensor]) -> Call:
            leaves = leaves_of(self._tree)
            tree = fill(self._tree, [tensors[places[id(x)]] if id(x) in places else x for x in leaves])
            return lambda function: function(tree)

        return Function(floats, bind, lambda tree: scalar(loss(tree, self._batch)))

    def _pull(self, groups: Sequence[Sequence[Use]], cotangents: Tensor) -> Iterator[Tensor]:
        """For each use the derivatives by its output, one row for each cotangent."""
        edges = [use.output for use in itertools.chain.from_iterable(groups)]
        if not edges:
            return iter(())
        varying = [i for i, output in enumerate(self._outputs) if output.requires_grad]
        outputs = [self._outputs[i] for i in varying]

        def pull(rows: Tensor, batched: bool) -> Sequence[Tensor]:
            pieces = [
                part.reshape(*part.shape[: rows.ndim - 1], *output.shape).to(output.dtype)
                for part, output in zip(
                    rows.split([output.numel() for output in self._outputs], dim=-1),
                    self._outputs,
                    strict=True,
                )
            ]
            return self._call(  # type: ignore[no-any-return]
                lambda _: torch.autograd.grad(
                    outputs,
                    edges,
                    [pieces[i] for i in varying],
                    retain_graph=True,
                    is_grads_batched=batched,
                )
            )

        if len(cotangents) == 1:
            return (part[None] for part in pull(cotangents[0], False))
        try:
            return iter(pull(cotangents, True))
        except RuntimeError:  # an operation that cannot be vectorised
            rows = [pull(row, False) for row in cotangents]
            return (torch.stack(parts) for parts in zip(*rows, strict=True))

    def _known(self) -> Sequence[Sequence[Use]]:
        if not self._arranged:
            self._uses, self._arranged = self._by_examples(self._uses), True
        return self._uses

    def _as_usual(self, cotangents: Tensor) -> Iterator[Tensor] | None:
        """The derivatives, if the rows of all layers come example by example or place by place.

        That takes one cotangent more: a sum of the others in which each example has a factor of its own.
        """
        count = self._count()
        apart = {torch.float64: 1e-6, torch.float32: 1e-3}.get(self._coarsest)
        if count < 2 or apart is None:
            return None
        random = torch.Generator().manual_seed(0)
        factors = (1 + torch.rand(count, generator=random, dtype=torch.float64)).to(self._like)
        signs = (2 * torch.randint(2, (len(cotangents),), generator=random) - 1).to(self._like)
        scaled = (signs @ cotangents)[None] * factors[self._examples()]
        found = list(self._pull(self._uses, torch.cat([cotangents, scaled])))
        for use, parts in zip(itertools.chain.from_iterable(self._uses), found, strict=True):
            plain = use.arrange(torch.tensordot(signs.to(parts), parts[:-1], 1)[None])[0].flatten(1)
            if len(plain) % count:
                return None
            usual = plain.reshape(count, -1, plain.shape[1]), factors[:, None, None]
            by_place = plain.reshape(-1, count, plain.shape[1]), factors[None, :, None]
            allowed = apart * plain.norm(dim=1)
            for order, (rows, expected) in ((None, usual), (_by_places(len(plain), count), by_place)):
                difference = use.arrange(parts[-1:]).reshape(rows.shape) - expected.to(rows) * rows
                if (difference.norm(dim=2).reshape(-1) <= allowed).all():
                    use.order = order
                    break
            else:
                return None
        return (parts[:-1] for parts in found)

    def _count(self) -> int:
        """How many examples there are; 0 where the outputs have no axis of them."""
        count = self.shapes[0][0] if self.shapes[0] else 0
        return count if all(shape[:1] == (count,) for shape in self.shapes) else 0

    def _examples(self) -> Tensor:
        """The example that each output belongs to."""
        parts = [torch.arange(n).repeat_interleave(prod(rest)) for n, *rest in self.shapes]
        return torch.cat(parts).to(self._like.device)

    def _by_examples(self, groups: Sequence[Sequence[Use]]) -> list[Sequence[Use]]:
        """The layers whose rows belong to one example each, with the order of their rows.

        Some come place by place, as in recurrent layers; a table of positions has rows that all examples
        share. Every example's cotangents get a factor of its own, which each row then shows.
        """
        count = self._count()
        if count == 0:
            return []  # outputs without an axis of examples have no rows either
        if count == 1:
            return list(groups)
        # Half precision cannot tell factors from one another, but zeros from what it has.
        base, least = {torch.float64: (1 << 20, 1), torch.float32: (1 << 10, 1)}.get(self._coarsest, (2, 0))
        digits = max(1, math.ceil(math.log(count, base) - 1e-9))
        # The smaller the factors, the less rounding; those of half precision, 0 and 1, have none.
        base = math.ceil(count ** (1 / digits) - 1e-9)
        random = torch.Generator().manual_seed(0)
        example = self._examples().cpu()
        rounding = least * base * torch.finfo(self._coarsest).eps / _APART
        factors = [torch.ones(len(example))]
        factors += [least + example.div(base**j, rounding_mode="floor") % base for j in range(digits)]
        cotangents = torch.stack(factors).double() * torch.randn(len(example), generator=random).double()
        pulled = self._pull(groups, cotangents.to(self._like))
        kept = []
        for group in groups:
            known = True
            for use in group:
                rows = use.arrange(next(pulled)).flatten(2).double()
                owners = _owners(rows, base, least, rounding)
                order = None if owners is None else _order(owners, count)
                known = known and order is not None
                use.order = order
            if known:
                kept.append(group)
        return kept

    def _by_example(self, rows: Tensor, use: Use) -> Tensor:
        """``(V, B, S, …)`` for ``(V, rows, …)``."""
        rows = rows.detach().to(self._like.dtype) if rows.is_floating_point() else rows
        if use.order is not None and len(use.order):
            rows = rows[:, use.order.to(rows.device)]
        return rows.reshape(len(rows), self.shapes[0][0], -1, *rows.shape[2:])


def _owners(pulled: Tensor, base: int, least: int, rounding: float) -> Tensor | None:
    """Which example each row belongs to, −1 where it is mere rounding; None where one belongs to several.

    Parameters
    ----------
    pulled : Tensor
        ``(1 + digits, rows, …)``: plain, and with a factor ``least`` + digit for each digit of the example.
    base, least : int
    rounding : float
        A row whose terms cancel to less than this part of the largest shows no factor.
    """
    plain, size = pulled[0], (pulled[0] ** 2).sum(1)
    known = size > rounding**2 * (size.max() if len(size) else 0)
    owners = torch.zeros(len(size), dtype=torch.long, device=size.device)
    for j, scaled in enumerate(pulled[1:]):
        ratio = torch.where(known, (scaled * plain).sum(1) / size.where(known, 1.0), least)
        factor = ratio.round()
        apart = (scaled - factor[:, None] * plain).norm(dim=1).where(known, 0.0)
        if (apart > _APART * size.sqrt()).any() or (factor < least).any() or (factor >= least + base).any():
            return None
        owners += (factor.long() - least) * base**j
    return torch.where(known, owners, -1)


def _by_places(rows: int, count: int) -> Tensor:
    """The order of rows that come place by place."""
    return torch.arange(rows).reshape(-1, count).T.reshape(-1)


def _order(owners: Tensor, count: int) -> Tensor | None:
    """The rows example by example; empty where they come so, None where examples have unlike many."""
    rows = torch.arange(len(owners), device=owners.device)
    if len(owners) % count:
        return None
    places, known = len(owners) // count, owners >= 0
    if torch.equal(owners[known], (rows // places)[known]):
        return rows[:0]
    if torch.equal(owners[known], (rows % count)[known]):
        return _by_places(len(owners), count)
    missing = places - torch.bincount(owners[known], minlength=count)
    if len(missing) > count or (missing < 0).any():
        return None
    filled = owners.clone()
    # Rows without a derivative may count for any example that lacks some.
    filled[~known] = torch.arange(count, device=owners.device).repeat_interleave(missing)
    return torch.argsort(filled, stable=True)


def _grouped(uses: Iterator[Use]) -> list[list[Use]]:
    """The uses of each layer; names that two layers share are those of their weights."""
    found: defaultdict[Layer, list[Use]] = defaultdict(list)
    for use in uses:
        found[use.layer].append(use)
    names = [layer.name for layer in found]
    own = [group[0].weight for group in found.values()]
    for layer, group in found.items():
        if names.count(layer.name) > 1:
            name = group[0].weight
            for use in group:
                use.layer = replace(layer, name=name if own.count(name) == 1 else f"{name}[{layer.start}]")
    return list(found.values())


def _uses(outputs: Sequence[Tensor], leaves: Sequence[Tensor], names: Sequence[str]) -> Iterator[Use]:
    """Every matrix product, convolution and look-up in the graph whose weight is one of the leaves."""
    nodes = _nodes([output.grad_fn for output in outputs if output.grad_fn is not None])
    weights = _Weights(leaves, names)
    biases = _added_biases(nodes, weights)
    for node in nodes:
        kind = _KINDS.get(node.name())
        if kind is not None:
            yield from kind(node, weights, biases)


def _nodes(roots: Sequence[Node]) -> list[Node]:
    """The nodes of a graph, in the order of the forward pass."""
    seen: dict[Node, None] = {}
    stack = [(root, iter(root.next_functions)) for root in roots]
    opened = set(roots)
    while stack:
        node, following = stack[-1]
        for child, _ in following:
            if child is not None and child not in opened:
                opened.add(child)
                stack.append((child, iter(child.next_functions)))
                break
        else:
            seen[node] = None
            stack.pop()
    return list(seen)


# What a weight may go through on its way: the same numbers in another arrangement.
_ARRANGE: dict[str, Callable[[Tensor, Any, int], Tensor]] = {
    "TBackward0": lambda x, node, number: x.t(),
    "TransposeBackward0": lambda x, node, number: x.transpose(node._saved_dim0, node._saved_dim1),
    "PermuteBackward0": lambda x, node, number: x.permute(node._saved_dims),
    "AliasBackward0": lambda x, node, number: x,
    "ToCopyBackward0": lambda x, node, number: x,
    "CloneBackward0": lambda x, node, number: x,
    "SplitBackward0": lambda x, node, number: x.split(node._saved_split_size, _signed(node._saved_dim))[
        number
    ],
    "SplitWithSizesBackward0": lambda x, node, number: x.split(
        list(node._saved_split_sizes), _signed(node._saved_dim)
    )[number],
    "UnbindBackward0": lambda x, node, number: x.unbind(_signed(node._saved_dim))[number],
    "SelectBackward0": lambda x, node, number: x.select(_signed(node._saved_dim), _signed(node._saved_index)),
    "SliceBackward0": lambda x, node, number: (
        x.narrow(
            _signed(node._saved_dim),
            _signed(node._saved_start),
            min(_signed(node._saved_end), x.shape[_signed(node._saved_dim)]) - _signed(node._saved_start),
        )
        if node._saved_step == 1
        else _refuse()
    ),
}


class _Weights:
    """The leaves that weights are, and where each begins in the flat vector."""

    def __init__(self, leaves: Sequence[Tensor], names: Sequence[str]) -> None:
        sizes = [leaf.numel() for leaf in leaves]
        starts = itertools.accumulate(sizes[:-1], initial=0)
        self._places = {
            id(leaf): (start, leaf, name) for start, leaf, name in zip(starts, leaves, names, strict=True)
        }

    def find(self, edge: tuple[Node | None, int]) -> tuple[int, Tensor, str] | None:
        """Where the tensor behind an edge lies in the flat vector: offset, a picture of it, and its name.

        The picture is a tensor without storage whose strides and offset are those in the flat vector.
        """
        node, number = edge
        path = []
        while node is not None and node.name() in _ARRANGE:
            path.append((node, number))
            node, number = node.next_functions[0]
        place = None if node is None else self._places.get(id(getattr(node, "variable", None)))
        if place is None:
            return None
        start, leaf, name = place
        picture = torch.empty(leaf.shape, device="meta")
        try:
            for step, output in reversed(path):
                picture = _ARRANGE[step.name()](picture, step, output)
        except (_Refused, RuntimeError, IndexError):
            return None
        return start + picture.storage_offset(), picture, name

    def name(self, edge: tuple[Node | None, int]) -> str:
        """The name of a tensor that was found."""
        found = self.find(edge)
        assert found is not None
        return found[2]


class _Refused(Exception):
    pass


def _refuse() -> Any:
    raise _Refused


def _signed(number: int) -> int:
    # Autograd keeps negative numbers as unsigned ones.
    return number - (1 << 64) if number >= 1 << 63 else number


def _layer(
    weights: _Weights, edge: Any, bias: Any, matrix: Callable[[Tensor], Tensor], **more: Any
) -> Layer | None:
    """The layer with this weight, of which ``matrix`` makes ``(groups · d_out, d_in)``."""
    found = weights.find(edge)
    if found is None:
        return None
    start, picture, name = found
    groups = more.get("groups", 1)
    picture = matrix(picture)
    rows, columns = picture.shape[0], prod(picture.shape[1:])
    order = sorted(range(picture.ndim), key=lambda axis: (-picture.stride(axis), axis))
    shape = tuple(picture.shape[axis] for axis in order)
    if not picture.permute(order).is_contiguous():
        return None
    axes = tuple(order.index(axis) for axis in range(picture.ndim))
    offset, path = None, name.rpartition(".")
    if bias is not None:
        at = weights.find(bias)
        if at is not None and at[1].shape == (rows,):
            offset = at[0]
            # A layer of a module has the module's name; weights that stand alone have their own.
            if at[2].rpartition(".")[0] != path[0]:
                path = ("", "", name)
        elif at is not None:
            return None
    layer = path[0] if path[2].startswith("weight") and path[0] else name
    return Layer(layer, start, shape, axes, columns, rows // groups, bias=offset, **more)


def _products(node: Any, weights: _Weights, biases: dict[Node, Any]) -> Iterator[Use]:
    if node.name() == "AddmmBackward0":
        if node._saved_alpha != 1 or node._saved_beta != 1:
            return
        bias, _, weight = node.next_functions
        saved = "_saved_mat1"
    else:
        _, weight = node.next_functions
        bias, saved = biases.get(node), "_saved_self"
    layer = _layer(weights, weight, bias, Tensor.t)
    if layer is None or getattr(node, saved) is None:
        return

    def inputs() -> Tensor:
        rows: Tensor = getattr(node, saved)
        return rows[:, None, :]

    yield Use(layer, inputs, GradientEdge(node, 0), lambda g: g[..., None, :], weights.name(weight))


def _convolutions(node: Any, weights: _Weights, biases: dict[Node, Any]) -> Iterator[Use]:
    if node._saved_transposed:
        return
    groups = node._saved_groups
    _, weight, bias = node.next_functions
    bias = bias if bias[0] is not None else None
    # Channels last: patches are then copied by the run, not number by number.
    layer = _layer(weights, weight, bias, lambda picture: picture.movedim(1, -1), groups=groups)
    if layer is None:
        return
    kernel = tuple(layer.shape[axis] for axis in layer.axes)[1:-1]
    dims = len(kernel)

    def spread(values: Sequence[int]) -> list[int]:
        return list(values) * dims if len(values) == 1 else list(values)

    stride, padding, dilation = map(spread, (node._saved_stride, node._saved_padding, node._saved_dilation))

    def patches() -> Tensor:
        x = node._saved_input
        x = torch.nn.functional.pad(x, [n for p in reversed(padding) for n in (p, p)])
        x = x.movedim(1, -1).contiguous().unflatten(-1, (groups, -1))
        for axis in range(dims):
            width = (kernel[axis] - 1) * dilation[axis] + 1
            x = x.unfold(1 + axis, width, stride[axis])[..., :: dilation[axis]]
        # (B, places…, groups, channels, kernel…) to rows of places.
        return x.movedim(2 + dims, -1).reshape(-1, groups, layer.d_in)

    def arrange(g: Tensor) -> Tensor:
        return g.movedim(2, -1).reshape(len(g), -1, groups, layer.d_out)

    yield Use(layer, patches, GradientEdge(node, 0), arrange, weights.name(weight))


def _look_ups(node: Any, weights: _Weights, biases: dict[Node, Any]) -> Iterator[Use]:
    if node._saved_scale_grad_by_freq:
        return
    layer = _layer(weights, node.next_functions[0], None, lambda picture: picture.t(), one_hot=True)
    if layer is not None:
        # The row that stands for padding is left out of the gradient on purpose.
        counts = node._saved_indices != _signed(node._saved_padding_idx)
        yield Use(
            layer,
            lambda: node._saved_indices.reshape(-1),
            GradientEdge(node, 0),
            lambda g: (g * counts[..., None]).reshape(len(g), -1, 1, layer.d_out),
            weights.name(node.next_functions[0]),
        )


_KINDS: dict[str, Callable[[Any, _Weights, dict[Node, Any]], Iterator[Use]]] = {
    "AddmmBackward0": _products,
    "MmBackward0": _products,
    "ConvolutionBackward0": _convolutions,
    "EmbeddingBackward0": _look_ups,
}


def _added_biases(nodes: Sequence[Node], weights: _Weights) -> dict[Node, Any]:
    """Biases that are added to a matrix product afterwards, by the product's node."""
    found: dict[Node, Any] = {}
    for node in nodes:
        if node.name() != "AddBackward0" or node._saved_alpha != 1:
            continue
        for one, other in itertools.permutations(node.next_functions):
            product = one[0]
            while product is not None and product.name() in ("ViewBackward0", "UnsafeViewBackward0"):
                product = product.next_functions[0][0]
            if product is not None and product.name() == "MmBackward0":
                at = weights.find(other)
                if at is not None and at[1].ndim == 1:
                    found[product] = other
    return found

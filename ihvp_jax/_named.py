"""From the uses of a model's weights to its layers, complete ones only."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import replace
from itertools import count, product
from typing import TypeAlias

from ihvp.layers import Layer
from ihvp_jax._program import Path, Uses

Interval: TypeAlias = tuple[int, int]
Members: TypeAlias = tuple[tuple[tuple[Path, tuple[int | None, ...]], ...], ...]
"""For each layer its uses: where, and in which iteration of each loop around; None for all iterations."""


def named_layers(uses: Uses, blocks: Mapping[str, slice]) -> tuple[tuple[Layer, ...], Members]:
    """The layers all of whose numbers are used as one and the same linear map, and their uses.

    A weight that has a slice in each iteration of a loop is as many layers.
    """
    members: dict[Layer, list[tuple[Path, tuple[int | None, ...]]]] = defaultdict(list)
    biases: dict[Layer, set[int | None]] = defaultdict(set)
    claims: dict[Hashable, Interval] = {i: view.interval for i, view in enumerate(uses.others)}
    for path, linear in uses.layers.items():
        added = uses.biases.get(path)
        for iteration in product(*(range(n) if step else [None] for n, step in linear.weight.loops)):
            layer = linear.layer(iteration)
            members[layer].append((path, iteration))
            biases[layer].add(added.at(iteration) if added else None)
            claims[layer] = layer.start, layer.stop
    for layer, starts in biases.items():
        for start in starts:
            if start is not None:
                claims[layer, start] = start, start + layer.groups * layer.d_out
    shared = _overlapping(claims)
    kept = [layer for layer in members if layer not in shared]
    layers = []
    for layer in kept:
        bias, *others = biases[layer]
        alone = not others and (layer, bias) not in shared
        layers.append(replace(layer, bias=bias if alone else None))
    return _with_names(layers, blocks), tuple(tuple(members[layer]) for layer in kept)


def _overlapping(claims: Mapping[Hashable, Interval]) -> set[Hashable]:
    """Who claims numbers that another one claims too."""
    order = sorted(claims, key=lambda owner: claims[owner])
    shared: set[Hashable] = set()
    for i, owner in enumerate(order):
        for j in range(i + 1, len(order)):
            if claims[order[j]][0] >= claims[owner][1]:
                break
            shared |= {owner, order[j]}
    return shared


def _with_names(layers: list[Layer], blocks: Mapping[str, slice]) -> tuple[Layer, ...]:
    """The layers, named by what holds the weight and the bias alone, or else by the weight.

    Of several in one weight each has its number.
    """

    def leaf(start: int) -> str:
        return next(name for name, part in blocks.items() if part.start <= start < part.stop)

    def holder(layer: Layer) -> str:
        weight, bias = leaf(layer.start), None if layer.bias is None else leaf(layer.bias)
        parent = weight.rpartition("/")[0]
        return parent if parent and bias and bias != weight and bias.rpartition("/")[0] == parent else weight

    weights, holders = [leaf(layer.start) for layer in layers], [holder(layer) for layer in layers]
    held: dict[str, set[str]] = defaultdict(set)
    for name, weight in zip(holders, weights, strict=True):
        held[name].add(weight)
    names = [name if len(held[name]) == 1 else weight for name, weight in zip(holders, weights, strict=True)]
    several, numbers = Counter(names), {name: count() for name in names}
    return tuple(
        replace(layer, name=f"{name}[{next(numbers[name])}]" if several[name] > 1 else name)
        for layer, name in zip(layers, names, strict=True)
    )

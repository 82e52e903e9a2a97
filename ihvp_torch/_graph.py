"""What torch recorded on the way to some values: its nodes, and the tensors that they keep."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor


def nodes(roots: Iterable[Any]) -> Iterator[Any]:
    """The nodes of a graph, each once: the ``roots``, and those that they lead to."""
    todo = [root for root in roots if root is not None]
    seen = set(todo)
    while todo:
        node = todo.pop()
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                todo.append(following)


def saved_tensors(roots: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors that a graph keeps for its backward passes, but for those that hooks took over.

    What a hook packed, a checkpoint's for example, is in no memory until the backward pass unpacks it.
    """
    for node in nodes(roots):
        for name in _saved_names(node.__class__):
            held = getattr(node, name)
            for entry in held if isinstance(held, list | tuple) else [held]:
                if isinstance(tensor := getattr(entry, "data", None), Tensor):
                    yield tensor


def storage(leaf: Any) -> int | None:
    """Where the memory of a tensor or numpy array begins; None of anything else."""
    if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
        return int(leaf.untyped_storage().data_ptr())
    return leaf.ctypes.data if isinstance(leaf, np.ndarray) else None


@functools.cache
def _saved_names(kind: type) -> list[str]:
    return [name for name in dir(kind) if name.startswith("_raw_saved")]

"""Parameters and hyperparameters as one structure: a module where one of them is a module, else a tuple."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ihvp.errors import ParameterError, describe
from ihvp_torch._parameters import parameters_of
from ihvp_torch._tree import fill, map_leaves, named_leaves


class Joint(nn.Module):  # type: ignore[misc]
    """``joint[0]`` and ``joint[1]`` are two structures, whose tensors are parameters of this module."""

    def __init__(self, *structures: Any) -> None:
        super().__init__()
        for name, structure in zip(("params", "hyper"), structures, strict=True):
            self.add_module(name, structure if isinstance(structure, nn.Module) else _Part(structure))

    def __getitem__(self, place: int) -> Any:
        part = list(self.children())[place]
        return part.structure() if isinstance(part, _Part) else part


class _Part(nn.Module):  # type: ignore[misc]
    def __init__(self, tree: Any) -> None:
        super().__init__()
        self._tree = map_leaves(lambda _: None, tree)
        for name, leaf in named_leaves(tree):
            # An alias: it follows what an optimizer writes to the tensor. The names may hold dots.
            self._parameters[name] = nn.Parameter(leaf.detach())

    def structure(self) -> Any:
        return fill(self._tree, self._parameters.values())


def joint(params: Any, hyper: Any) -> Any:
    """Both in one, numbers and numpy arrays among the hyperparameters as tensors."""
    like = parameters_of(params).tensors[0]

    def lifted(leaf: Any) -> Tensor:
        if isinstance(leaf, (float, np.floating, np.ndarray)) and np.asarray(leaf).dtype.kind == "f":
            dtype = like.dtype if isinstance(leaf, float) else None
            return torch.as_tensor(leaf, dtype=dtype, device=like.device)
        if not (isinstance(leaf, Tensor) and leaf.is_floating_point()):
            kind = f" of dtype {leaf.dtype}" if hasattr(leaf, "dtype") else ""
            raise ParameterError(
                f"Found {describe(leaf)}{kind} among the hyperparameters; expected tensors, arrays or "
                "numbers of a floating dtype, alone or in dicts, lists and tuples, or a module."
            )
        return leaf

    if not isinstance(hyper, nn.Module):
        hyper = map_leaves(lifted, hyper)
    if isinstance(hyper, nn.Module) or isinstance(params, nn.Module):
        return Joint(params, hyper)
    return params, hyper

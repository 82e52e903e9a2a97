"""What a result depends on, in a form short enough to be kept beside it."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from typing import Any

from ihvp.algebra import as_numpy
from ihvp.backend import Batch, Params
from ihvp.contents import Contents, is_installed
from ihvp.data import Batches, describe_structure
from ihvp.digest import array_bytes, digest
from ihvp.objective import Objective
from ihvp.operators import LinearOperator


def of_array(array: Any) -> str:
    """Of an array of any framework: its dtype, shape and every bit."""
    plain = as_numpy(array)
    return digest(f"{array.dtype}{plain.shape}".encode(), array_bytes(plain)).hex()


def of_batch(batch: Batch) -> str:
    """Of one batch: its structure and every bit of its arrays."""
    return of_data(Batches([batch]))


def of_data(batches: Batches) -> str:
    """Of all batches in their order, in one pass over them; how the examples are cut does not enter."""
    leaves: dict[str, _Rows] = {}
    for batch, _ in batches:
        for name, leaf in _leaves(batch, describe_structure(batch)):
            leaves.setdefault(name, _Rows()).feed(leaf)
    parts = ((name.encode(), leaves[name].state.digest()) for name in sorted(leaves))
    return digest(*itertools.chain(*parts)).hex()


def of_function(function: Any) -> str:
    """Of a loss: its code, and what it refers to; :class:`~ihvp.contents.Contents` says how far.

    >>> of_function(lambda w, batch: w) == of_function(lambda w, batch: w + 1)
    False
    >>> margins = [lambda w, batch, label=label: w[label] for label in (0, 1)]
    >>> of_function(margins[0]) == of_function(margins[1])
    False
    >>> weighted = [lambda w, batch, weights={"decay": decay}: weights["decay"] * w for decay in (0.1, 0.2)]
    >>> of_function(weighted[0]) == of_function(weighted[1])
    False
    """
    return Contents().digest(function).hex()


def of_objective(objective: Objective) -> dict[str, str]:
    """Of an objective: of its parameters, its model, its loss, and its data, by these names."""
    return {
        "parameters": of_array(objective.backend.flatten(objective.params)),
        "model": Contents(_differentiated(objective.params)).digest(objective.params).hex(),
        "loss": of_function(objective.loss),
        "reduction": objective.reduction,
        "weights": of_function(objective.weighting.function),
        "training data": of_data(objective.batches),
        "backend": type(objective.backend).__name__,
    }


def of_operator(operator: LinearOperator, objective: Objective) -> str:
    """Of a curvature: its kind and what it is made of, unless that is the objective itself."""
    own = not is_installed(type(operator).__module__)
    contents = Contents([operator.space, objective])
    parts = [contents.digest(type(operator))] if own else []
    for name, value in sorted(vars(operator).items()):
        if isinstance(value, LinearOperator):
            parts.append(of_operator(value, objective).encode())
        elif isinstance(value, Objective):
            if value is not objective:
                parts.append(repr(of_objective(value)).encode())
        elif own or not name.startswith("_"):
            parts.append(contents.digest(value))
    return f"{type(operator).__name__} {digest(*parts).hex()}"


def _differentiated(params: Params) -> list[Any]:
    """The arrays that are known as the parameters: what else a loss reads through them is frozen."""
    if hasattr(params, "named_parameters"):
        return [parameter for _, parameter in params.named_parameters() if parameter.requires_grad]
    if hasattr(params, "trainable_variables"):
        return list(params.trainable_variables)
    return [leaf for _, leaf in _leaves(params, "") if hasattr(leaf, "shape")]


def _leaves(batch: Batch, path: str) -> list[tuple[str, Any]]:
    if isinstance(batch, Mapping):
        return [pair for key in sorted(batch, key=str) for pair in _leaves(batch[key], f"{path}[{key!r}]")]
    if isinstance(batch, (tuple, list)):
        return [pair for i, item in enumerate(batch) for pair in _leaves(item, f"{path}[{i}]")]
    return [(path, batch)]


class _Rows:
    """The rows of one array, which comes in pieces."""

    def __init__(self) -> None:
        self.state = hashlib.blake2b(digest_size=16)
        self._form: Any = None

    def feed(self, leaf: Any) -> None:
        if not hasattr(leaf, "shape"):
            self.state.update(Contents().digest(leaf))
            return
        array = as_numpy(leaf)
        form = leaf.dtype, array.shape[1:]
        # Padded batches differ in their later dimensions.
        if form != self._form:
            self._form = form
            self.state.update(f"{form[0]}{form[1]}".encode())
        self.state.update(array_bytes(array))

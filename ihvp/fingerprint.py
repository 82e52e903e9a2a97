"""What a result depends on, in a form short enough to be kept beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihvp.algebra import as_numpy
from ihvp.backend import Batch, Params
from ihvp.contents import Contents, is_installed
from ihvp.data import Batches, describe_structure, is_array
from ihvp.digest import array_bytes, digest
from ihvp.objective import Objective
from ihvp.operators import LinearOperator
from ihvp.processes import Processes


def of_array(array: Any) -> str:
    """Of an array of any framework: its dtype, shape and every bit."""
    plain = as_numpy(array)
    return digest(f"{array.dtype}{plain.shape}".encode(), array_bytes(plain)).hex()


def of_batch(batch: Batch) -> str:
    """Of one batch: its structure and every bit of its arrays."""
    return of_data(Batches([batch]))


def of_data(batches: Batches, processes: Processes | None = None, first: int = 0) -> str:
    """Of all examples in their order, in one pass over them; how they are cut into batches does not enter.

    Nor does how they are spread over processes, of which each calls this with the number of its own ``first``
    example: the digests of the examples and their numbers are added up (Bellare and Micciancio, "A new
    paradigm for collision-free hashing: incrementality at reduced cost", EUROCRYPT 1997).
    """
    total = np.zeros(2, np.int64)  # whose sums wrap around
    for batch, count in batches:
        for name, leaf in _leaves(batch, describe_structure(batch)):
            # What is no array belongs to each example of its batch.
            rows = as_numpy(leaf) if is_array(leaf) else None
            form = Contents().digest(leaf) if rows is None else f"{leaf.dtype}{rows.shape[1:]}".encode()
            key = digest(name.encode(), form)
            if rows is None:
                total += count * np.frombuffer(key, np.int64)
                continue
            each = (
                hashlib.blake2b(row, digest_size=16, key=key, salt=number.to_bytes(16)).digest()
                for number, row in enumerate(_bytes_of_rows(rows), first)
            )
            total += np.frombuffer(b"".join(each), np.int64).reshape(-1, 2).sum(axis=0)
        first += count
    return (total if processes is None else processes.sum(total)).tobytes().hex()


def of_examples(objective: Objective) -> str:
    """Of the data of an objective, over all processes that it is spread over."""
    return of_data(objective.batches, objective.processes, objective.first)


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


def of_model(objective: Objective) -> dict[str, str]:
    """Of the parameters of an objective, and of what else is in their container, by these names."""
    return {
        "parameters": of_array(objective.backend.flatten(objective.params)),
        "model": Contents(_differentiated(objective.params)).digest(objective.params).hex(),
    }


def of_objective(objective: Objective) -> dict[str, str]:
    """Of an objective: of its parameters, its model, its loss, and its data, by these names."""
    return {
        **of_model(objective),
        "loss": of_function(objective.loss),
        "reduction": objective.reduction,
        "weights": of_function(objective.weighting.function),
        "training data": of_examples(objective),
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


def _bytes_of_rows(rows: NDArray[Any]) -> Iterator[Any]:
    if rows.dtype.hasobject:
        return map(array_bytes, rows)
    whole, size = memoryview(array_bytes(rows)), rows.nbytes // len(rows)
    return (whole[start : start + size] for start in range(0, rows.nbytes, size or 1))

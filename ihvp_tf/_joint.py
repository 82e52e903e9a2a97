"""Parameters and hyperparameters as one model, for a loss of both."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from ihvp.errors import ParameterError, describe
from ihvp_tf._parameters import is_variable, variables_of, vector_dtype


class Joint(tf.Module):  # type: ignore[misc]
    """``joint[0]`` and ``joint[1]`` are two structures or models, whose variables it has in this order."""

    def __init__(self, *structures: Any) -> None:
        super().__init__()
        # Attributes of a module would be replaced by containers that track what is in them.
        self.__dict__["_structures"] = structures

    def __getitem__(self, place: int) -> Any:
        return self.__dict__["_structures"][place]

    @property
    def trainable_variables(self) -> tuple[Any, ...]:
        return tuple(variable for part in self.__dict__["_structures"] for variable in variables_of(part))


def joint(params: Any, hyper: Any) -> Joint:
    """Both in one; arrays and numbers among the hyperparameters are held by new variables."""
    dtype = vector_dtype(variables_of(params))

    def held(leaf: Any) -> Any:
        if is_variable(leaf):
            return leaf
        if isinstance(leaf, float) or "float" in str(getattr(leaf, "dtype", None)):
            return tf.Variable(leaf, dtype=dtype if isinstance(leaf, float) else None)
        kind = f" of dtype {tf.as_dtype(leaf.dtype).name}" if hasattr(leaf, "dtype") else ""
        raise ParameterError(
            f"Found {describe(leaf)}{kind} among the hyperparameters; expected variables, arrays or numbers "
            "of a floating dtype, in lists, tuples or dicts, or a model."
        )

    model = isinstance(hyper, tf.Module) or hasattr(hyper, "trainable_variables")
    return Joint(params, hyper if model else tf.nest.map_structure(held, hyper))

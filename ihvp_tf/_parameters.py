"""Parameters as a list of variables, and their values as one numpy vector.

Variables hold their values in place. Values that are not the current ones therefore travel in a container
that remembers its variables (``Values``), and ``values_of`` tells which of them have which.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ihvp.backend import Params, Vector
from ihvp.errors import ParameterError, WrongShape, describe

_ACCEPTED = "a keras.Model or keras.Layer, a tf.Module, or a list, tuple or dict of tf.Variable"


class Values:
    """Values for the variables of ``owner``, usable as parameters in its place."""

    owner: Params = None


class ListOfValues(Values, list[Any]):
    """One array a variable; of a model, in the order of its ``trainable_variables``."""


class TupleOfValues(Values, tuple[Any, ...]):
    """One array a variable, in a tuple."""


class DictOfValues(Values, dict[Any, Any]):
    """One array a variable, by name."""


def owner_of(params: Params) -> Params:
    """The object that the loss is called with."""
    return params.owner if isinstance(params, Values) and params.owner is not None else params


def variables_of(params: Params) -> list[Any]:
    """The ``tf.Variable`` objects that are differentiated by."""
    leaves = _leaves(owner_of(params))
    found = [
        f"{_name(leaf, i)} is {describe(leaf)}" for i, leaf in enumerate(leaves) if not is_variable(leaf)
    ]
    if found:
        raise ParameterError(
            f"Found parameters that are no variables: {'; '.join(found)}. Expected {_ACCEPTED}. "
            "Wrap the arrays: tf.Variable(array)."
        )
    variables = [leaf.value if _is_keras(leaf, "Variable") else leaf for leaf in leaves]
    if len({id(variable) for variable in variables}) < len(variables):
        names = [_name(leaf, i) for i, leaf in enumerate(leaves)]
        raise ParameterError(
            f"Found a variable twice among {', '.join(names)}; expected every variable once. "
            "Pass a shared variable once and let the loss use it in both places."
        )
    return variables


def names_of(params: Params) -> list[str]:
    """A name for each variable: its path in Keras, else its place in a structure, or its name in a model."""
    owner = owner_of(params)
    leaves = _leaves(owner)
    places = [leaf.name.partition(":")[0] for leaf in leaves] if _is_model(owner) else _places(owner)
    names = [getattr(leaf, "path", place) for leaf, place in zip(leaves, places, strict=True)]
    # Models may give one name twice.
    return [f"{name}#{i}" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _places(structure: Any) -> list[str]:
    """The path of each leaf, in the order of ``tf.nest``."""
    if isinstance(structure, Mapping):
        children = [(key, structure[key]) for key in sorted(structure)]
    elif isinstance(structure, (list, tuple)):
        children = list(enumerate(structure))
    else:
        return [""]
    return [f"{key}/{place}" if place else str(key) for key, child in children for place in _places(child)]


def require_floating(leaves: Sequence[Any], params: Params) -> None:
    """Refuse parameters without leaves, and leaves that are not of a real floating dtype."""
    if not leaves:
        raise ParameterError(
            f"Found no parameter in {describe(params)}; expected {_ACCEPTED} with at least one trainable "
            "variable. Build the model (call it once on data), or unfreeze a layer."
        )
    refused = [
        f"{_name(leaf, i)} is {describe(leaf)}"
        + (f" and dtype {_dtype(leaf).name}" if _is_array(leaf) else "")
        for i, leaf in enumerate(leaves)
        if not _is_array(leaf) or not _dtype(leaf).is_floating
    ]
    if refused:
        raise ParameterError(
            f"Found parameters that are not real floating arrays: {'; '.join(refused)}. Expected dtype "
            "float16, bfloat16, float32 or float64. Cast them, or leave them out and let the loss close over "
            "them."
        )


def flatten(params: Params) -> Vector:
    """The leaves in the order of ``trainable_variables``, else of ``tf.nest``, as one vector ``(P,)``."""
    leaves = _leaves(params)
    dtype = vector_dtype(leaves).as_numpy_dtype
    return np.concatenate([np.asarray(leaf).ravel().astype(dtype, copy=False) for leaf in leaves])


def unflatten(vector: Vector, like: Params) -> Params:
    """The inverse of ``flatten``; where ``like`` holds variables, the result remembers them."""
    owner = owner_of(like)
    leaves = _leaves(owner)
    ends = np.cumsum([size_of(leaf) for leaf in leaves])
    if np.shape(vector) != (ends[-1],):
        raise WrongShape(np.shape(vector), int(ends[-1]))
    pieces = [
        _in_form_of(leaf, piece.reshape(tuple(leaf.shape)).astype(_dtype(leaf).as_numpy_dtype))
        for leaf, piece in zip(leaves, np.split(np.asarray(vector), ends[:-1]), strict=True)
    ]
    if _is_model(owner):
        return _remembering(ListOfValues(pieces), owner)
    packed = tf.nest.pack_sequence_as(owner, pieces)
    if not all(map(is_variable, leaves)):
        return packed
    container = next(
        kind
        for base, kind in ((list, ListOfValues), (tuple, TupleOfValues), (Mapping, DictOfValues))
        if isinstance(owner, base)
    )
    return _remembering(container(packed), owner)


def values_of(params: Params, variables: Sequence[Any]) -> list[tuple[Any, Any]]:
    """The variables with the values that ``params`` says, where those are others than their own."""
    return [] if owner_of(params) is params else list(zip(variables, tf.nest.flatten(params), strict=True))


def vector_dtype(leaves: Sequence[Any]) -> Any:
    """The dtype of vectors: that which numpy promotes all leaves to, and no narrower than float32."""
    dtypes = {_dtype(leaf).as_numpy_dtype for leaf in leaves}
    return tf.as_dtype(functools.reduce(np.promote_types, dtypes, np.dtype(np.float32)))


def size_of(leaf: Any) -> int:
    """The number of entries of one parameter."""
    return int(np.prod(tuple(leaf.shape), dtype=np.int64))


def is_variable(value: Any) -> bool:
    """Whether it is a variable of TensorFlow or Keras."""
    return isinstance(value, tf.Variable) or _is_keras(value, "Variable")


def device_of(variables: Sequence[Any]) -> str:
    """``"cpu"`` or ``"gpu:0"``: where the variables live; without any, where TensorFlow would put them."""
    if not variables:
        return "gpu:0" if tf.config.list_logical_devices("GPU") else "cpu"
    specs = [tf.DeviceSpec.from_string(variable.device) for variable in variables]
    names = [f"{spec.device_type}:{spec.device_index}".lower() for spec in specs]
    devices = sorted({"cpu" if name.startswith("cpu") else name for name in names})
    if len(devices) > 1:
        raise ParameterError(
            f"Found parameters on {len(devices)} devices ({', '.join(devices)}); expected one. Create all "
            "variables under one tf.device(...)."
        )
    return devices[0]


def _leaves(params: Params) -> list[Any]:
    if tf.distribute.has_strategy():
        raise ParameterError(
            "The call is made inside scope() or run() of a tf.distribute strategy, where variables cannot be "
            "watched, or each replica would make it; expected one outside of both. Leave the scope: the "
            "model is then differentiated like any other."
        )
    if _is_model(params):
        leaves = list(params.trainable_variables)
    elif isinstance(params, (list, tuple, Mapping)):
        leaves = tf.nest.flatten(params)
    else:
        raise ParameterError(f"The parameters are {describe(params)}; expected {_ACCEPTED}.")
    keras = sys.modules.get("keras")
    if keras is not None and any(_is_keras(leaf, "Variable") for leaf in leaves):
        backend = keras.backend.backend()
        if backend != "tensorflow":
            raise ParameterError(
                f"The variables are of Keras on {backend}; expected Keras on TensorFlow. On JAX and torch "
                "pass [v.value for v in model.trainable_variables], and a loss that calls "
                "model.stateless_call. Or set the environment variable KERAS_BACKEND=tensorflow before Keras "
                "is imported."
            )
    require_floating(leaves, params)
    return leaves


def _is_keras(value: Any, name: str) -> bool:
    # Keras is looked up where it is already imported: whoever has a Keras object has imported it.
    kind = getattr(sys.modules.get("keras"), name, None)
    return kind is not None and isinstance(value, kind)


def _is_model(value: Any) -> bool:
    return isinstance(value, tf.Module) or _is_keras(value, "Layer")


def _is_array(value: Any) -> bool:
    return isinstance(value, (tf.Tensor, np.ndarray, np.floating)) or is_variable(value)


def _in_form_of(leaf: Any, value: np.ndarray) -> Any:
    return value if isinstance(leaf, (np.ndarray, np.floating)) else tf.convert_to_tensor(value)


def _remembering(values: Any, owner: Params) -> Params:
    values.owner = owner
    return values


def _dtype(leaf: Any) -> Any:
    return tf.as_dtype(leaf.dtype)


def _name(leaf: Any, index: int) -> str:
    return getattr(leaf, "path", None) or (leaf.name if is_variable(leaf) else f"number {index}")

"""Parameters from what Keras saves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from ihvp.backend import Params
from ihvp.checkpoint_file import read_arrays, require_same_arrays, unreadable
from ihvp.errors import ParameterError, describe
from ihvp_tf import _parameters

_KERAS = ".weights.h5"


def restore(checkpoint: Any, params: Params) -> Params:
    """The parameters of a checkpoint in the structure of ``params``: of a Keras model, a copy of it.

    A checkpoint is a model, a list of arrays as ``get_weights()`` returns, a mapping of names to arrays, or a
    file: ``.weights.h5``, ``.npz``, ``.safetensors``.
    """
    owner = _parameters.owner_of(params)
    is_model = hasattr(owner, "get_weights") and hasattr(owner, "get_config")
    if isinstance(checkpoint, Path) and not checkpoint.name.endswith(_KERAS):
        checkpoint = read_arrays(checkpoint, (_KERAS,))
    if not is_model:
        return _of_structure(checkpoint, params)
    copied = _copy(owner)
    if isinstance(checkpoint, Path):
        try:
            copied.load_weights(checkpoint)
        except ValueError as error:
            raise ParameterError(
                f"The checkpoint {checkpoint} is that of another architecture: {error}. Pass checkpoints of "
                "the model that the objective has."
            ) from error
        except Exception as error:
            raise unreadable(checkpoint, error) from error
        return copied
    if hasattr(checkpoint, "get_weights"):
        checkpoint = _weights(checkpoint)
    names = [variable.path for variable in owner.weights]
    if not isinstance(checkpoint, Mapping):
        checkpoint = dict(zip(_numbered(names, checkpoint), checkpoint, strict=True))
    expected = {name: tuple(variable.shape) for name, variable in zip(names, owner.weights, strict=True)}
    require_same_arrays({name: np.shape(array) for name, array in checkpoint.items()}, expected)
    copied.set_weights([checkpoint[name] for name in names])
    return copied


def _copy(model: Any) -> Any:
    try:
        copied = tf.keras.models.clone_model(model)
        copied.set_weights(_weights(model))
        for layer, own in zip(copied.layers, model.layers, strict=True):
            layer.trainable = own.trainable
    except Exception as error:
        raise ParameterError(
            f"{describe(model)} cannot be copied by keras.models.clone_model ({error}), which a checkpoint "
            "is loaded into. Load each checkpoint into a model of its own, and pass the models."
        ) from error
    return copied


def _weights(model: Any) -> list[np.ndarray]:
    # get_weights() itself asks numpy for what numpy has deprecated.
    return [variable.value.numpy() for variable in model.weights]


def _of_structure(checkpoint: Any, params: Params) -> Params:
    names, own = _parameters.names_of(params), _parameters.variables_of(params)
    if (isinstance(checkpoint, Mapping) and not set(checkpoint) >= set(names)) or isinstance(
        checkpoint, (list, tuple)
    ):
        checkpoint = tf.nest.flatten(checkpoint)
    if not isinstance(checkpoint, Mapping):
        checkpoint = dict(zip(_numbered(names, checkpoint), checkpoint, strict=True))
    arrays = {name: np.asarray(value) for name, value in checkpoint.items()}
    expected = {name: tuple(variable.shape) for name, variable in zip(names, own, strict=True)}
    require_same_arrays({name: array.shape for name, array in arrays.items()}, expected)
    vector = np.concatenate([arrays[name].ravel() for name in names])
    return _parameters.unflatten(vector.astype(_parameters.flatten(params).dtype), params)


def _numbered(names: list[str], arrays: Any) -> list[str]:
    """A name for each of some arrays: those of the parameters, and numbers for what is too much."""
    return [*names[: len(arrays)], *(f"array {i}" for i in range(len(names), len(arrays)))]

"""Parameters from what programs of JAX save."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ihvp.checkpoint_file import read_arrays, require_same_arrays, unreadable
from ihvp.errors import IhvpError
from ihvp.packages import required


def restore(checkpoint: Any, params: Any) -> Any:
    """The parameters of a checkpoint in the structure of ``params``.

    A checkpoint is a pytree of the same structure or nested mappings with the same names, a file, or a folder
    of orbax. Names of files may join the keys of a path by ``/`` or ``.``.
    """
    if isinstance(checkpoint, Path):
        checkpoint = _read(checkpoint)
    found, own = _named(checkpoint), _named(params)
    if set(found) != set(own) and isinstance(checkpoint, Mapping) and set(checkpoint) == {"params"}:
        found = _named(checkpoint["params"])
    require_same_arrays(*({name: jnp.shape(leaf) for name, leaf in each.items()} for each in (found, own)))
    leaves = [jnp.asarray(found[name], dtype=leaf.dtype) for name, leaf in own.items()]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _named(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/").replace(".", "/"): leaf
        for path, leaf in leaves
    }


def _read(path: Path) -> Any:
    try:
        if path.is_dir():
            orbax = required("orbax.checkpoint", "reading a folder", "pip install orbax-checkpoint")
            with orbax.StandardCheckpointer() as checkpointer:
                return checkpointer.restore(path.absolute())
        if path.suffix == ".msgpack":
            flax = required("flax.serialization", "reading .msgpack", "pip install flax")
            return flax.msgpack_restore(path.read_bytes())
    except IhvpError:
        raise
    except Exception as error:  # each format has exceptions of its own
        raise unreadable(path, error) from error
    return read_arrays(path, (".msgpack", "a folder of orbax"))

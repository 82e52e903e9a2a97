"""Arrays over a mesh of devices: what meets in a derivative is laid over one, and XLA divides the work."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from ihvp.backend import Params
from ihvp.errors import ParameterError, TracedValue, is_traced


def computed(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function of arrays that lie anywhere: on one device, or over a mesh as soon as one of them does.

    What JAX traces is refused: it would be kept for later calls, when it means nothing any more.
    """
    leaves, structure = jax.tree.flatten(arguments)
    if any(map(is_traced, leaves)):
        raise TracedValue("A parameter, an array of the batch or a vector")
    mesh = _mesh_of(leaves)
    if mesh is not None:
        arguments = structure.unflatten([_laid_over(mesh, leaf) for leaf in leaves])
    result = function(*arguments)
    if any(map(is_traced, jax.tree.leaves(result))):
        # The function that calls is traced, or the loss refers to what is.
        raise TracedValue("A result")
    return result


def over_mesh(tree: Any) -> bool:
    """Whether an array of a tree lies over a mesh."""
    return _mesh_of(jax.tree.leaves(tree)) is not None


def whole(result: Any, params: Params) -> Any:
    """Arrays where the parameters lie: on their device, or all of them on each device of their mesh."""
    if not any(map(_is_over_mesh, jax.tree.leaves(result))):
        return result
    mesh = _mesh_of(jax.tree.leaves(params))
    return divided(result, params) if mesh is None else jax.device_put(result, _everywhere(mesh))


def divided(result: Any, params: Params) -> Any:
    """Arrays on the parameters' device, or over their mesh as XLA has divided them."""
    if not any(map(_is_over_mesh, jax.tree.leaves(result))) or _mesh_of(jax.tree.leaves(params)) is not None:
        return result
    (device,) = _devices(params)
    return jax.tree.map(functools.partial(_on_device, device=device), result)


def laid_like(result: Params, like: Params) -> Params:
    """Arrays in the structure of others, over their meshes; where they are on a device, left as they lie."""
    return jax.tree.map(
        lambda array, other: jax.device_put(array, other.sharding) if _is_over_mesh(other) else array,
        result,
        like,
    )


def place_of(params: Params = None) -> str:
    """The device of the parameters, as ``"cpu"`` or ``"cuda:0"``, or their mesh, as ``"cpu:mesh(data=2)"``.

    Without arrays, JAX's default device.
    """
    leaves = jax.tree.leaves(params)
    if any(map(is_traced, leaves)):
        raise TracedValue("A parameter")
    mesh = _mesh_of(leaves)
    # Those on one device are copied to all of the mesh.
    devices = _devices([leaf for leaf in leaves if mesh is None or _is_over_mesh(leaf)])
    if len(devices) != (1 if mesh is None else mesh.size):
        raise ParameterError(
            f"Found parameters on {len(devices)} devices ({', '.join(sorted(map(str, devices)))}); expected "
            "one, or one mesh. Move them with jax.device_put(params, device_or_sharding)."
        )
    device = min(devices, key=lambda device: device.id)
    kind = "cuda" if device.platform == "gpu" else device.platform
    if mesh is not None:
        return f"{kind}:mesh({', '.join(f'{axis}={size}' for axis, size in mesh.shape.items())})"
    return kind if kind == "cpu" else f"{kind}:{device.id}"


def _devices(params: Params) -> set[Any]:
    arrays = [leaf for leaf in jax.tree.leaves(params) if isinstance(leaf, jax.Array)]
    return set().union(*(array.devices() for array in arrays or [jnp.zeros(())]))


def _is_over_mesh(leaf: Any) -> bool:
    # A mesh may have one device: arrays that know of it lie elsewhere, to JAX, than those that do not.
    return isinstance(leaf, jax.Array) and not isinstance(leaf.sharding, SingleDeviceSharding)


def _mesh_of(leaves: list[Any]) -> Mesh | None:
    """The mesh of the first array that lies over one."""
    _require_no_explicit_axes()
    return next((_mesh(leaf.sharding) for leaf in leaves if _is_over_mesh(leaf)), None)


@functools.lru_cache(maxsize=1024)
def _mesh(sharding: Sharding) -> Mesh:
    """The mesh of a sharding with axes that XLA divides along by itself."""
    if isinstance(sharding, NamedSharding):
        return Mesh(sharding.mesh.devices, sharding.mesh.axis_names)
    return Mesh(np.array(sorted(sharding.device_set, key=lambda device: device.id)), ("devices",))


def _everywhere(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def _laid_over(mesh: Mesh, leaf: Any) -> Any:
    """An array divided as it is if it lies over the devices of the mesh, else all of it on each of them."""
    if not isinstance(leaf, jax.Array):
        return leaf  # compiled functions take those of numpy to all devices
    if leaf.is_fully_addressable and mesh.is_multi_process:
        return np.asarray(leaf)  # between devices of several processes JAX moves nothing
    sharding = leaf.sharding
    if not isinstance(sharding, NamedSharding) or sharding.mesh.devices.tolist() != mesh.devices.tolist():
        return jax.device_put(leaf, _everywhere(mesh))
    mine = _mesh(sharding)
    return leaf if mine == sharding.mesh else jax.device_put(leaf, NamedSharding(mine, sharding.spec))


def _on_device(array: jax.Array, device: Any) -> jax.Array:
    if not array.is_fully_addressable:
        mesh = _mesh(array.sharding)
        array = jax.device_put(array, _everywhere(mesh)).addressable_data(0)
    return jax.device_put(array, device)


def _require_no_explicit_axes() -> None:
    """Refuse a mesh whose axes are part of the types of all arrays, those of the library's own too."""
    current: Any = getattr(jax.sharding, "get_abstract_mesh", tuple)()
    if "Explicit" in str(getattr(current, "axis_types", "")):
        raise ParameterError(
            f"jax.set_mesh has set a mesh of explicit axes, {dict(current.shape)}, along which each "
            "operation is to say how it divides; expected none, or axes that XLA divides along by itself. "
            "Arrays over explicit axes may be passed all the same: call ihvp where the mesh is not set, or "
            "inside `with jax.set_mesh(jax.sharding.Mesh(mesh.devices, mesh.axis_names)):`."
        )

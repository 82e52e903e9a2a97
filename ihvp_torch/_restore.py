"""Parameters from what torch saves."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ihvp.checkpoint_file import read_arrays, require_same_arrays, unreadable
from ihvp.errors import DataError, ParameterError, describe
from ihvp.packages import required
from ihvp_torch._tree import fill, named_leaves

_PICKLES = (".pt", ".pth", ".bin", ".ckpt")


def restore(checkpoint: Any, params: Any) -> Any:
    """The parameters of a checkpoint in the structure of ``params``: of a module, a copy of it.

    A checkpoint is a file, a module, or a state dictionary, also one under the key ``"state_dict"``.
    """
    if isinstance(checkpoint, Path):
        checkpoint = _read(checkpoint)
    if isinstance(checkpoint, nn.Module):
        checkpoint = checkpoint.state_dict()
    if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get("state_dict"), Mapping):
        checkpoint = checkpoint["state_dict"]
    if isinstance(params, nn.parallel.DistributedDataParallel):
        params = params.module
    if isinstance(params, nn.Module):
        return _of_module(checkpoint, params)
    found, own = dict(named_leaves(checkpoint)), dict(named_leaves(params))
    _require_same(found, own)
    like = [(torch.as_tensor(found[name]), tensor) for name, tensor in own.items()]
    return fill(params, [value.detach().to(tensor.device, tensor.dtype) for value, tensor in like])


def _of_module(checkpoint: Any, module: nn.Module) -> nn.Module:
    if not isinstance(checkpoint, Mapping):
        raise ParameterError(
            f"The checkpoint is {describe(checkpoint)}; expected a file, a module or its state dictionary."
        )
    own = module.state_dict()
    # A tied weight may be saved once.
    places = {name: tensor.data_ptr() for name, tensor in own.items()}
    saved = {places[name]: value for name, value in checkpoint.items() if name in places}
    state = {**{name: saved[place] for name, place in places.items() if place in saved}, **checkpoint}
    _require_same(state, own)
    copied = copy.deepcopy(module)
    copied.load_state_dict({name: torch.as_tensor(value) for name, value in state.items()})
    return copied


def _require_same(found: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    shapes = [
        {name: tuple(getattr(value, "shape", ())) for name, value in each.items()} for each in (found, own)
    ]
    require_same_arrays(*shapes)


def _read(path: Path) -> Any:
    if path.suffix not in (*_PICKLES, ".safetensors"):
        return read_arrays(path, _PICKLES)
    try:
        if path.suffix == ".safetensors":
            load = required("safetensors.torch", "reading .safetensors", "pip install safetensors").load_file
            return load(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (DataError, ImportError):
        raise
    except Exception as error:  # pickled code, a torn file: each in its own way
        raise unreadable(path, error) from error

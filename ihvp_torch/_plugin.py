"""The record of the torch backend; torch is imported only by what it refers to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ihvp.backend import BackendPlugin, Dialect
from ihvp.hookspecs import hookimpl

if TYPE_CHECKING:
    import numpy as np

    from ihvp_torch._backend import TorchBackend


def factory(params: Any = None, **options: Any) -> TorchBackend:
    """The backend on the device of ``params``."""
    from ihvp_torch._backend import TorchBackend

    return TorchBackend(params, **options)


def dialect() -> Dialect:
    """Array functions and parameters for a loss that is written once for every framework."""
    import array_api_compat.torch as xp
    import torch

    def parameters(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        return {name: torch.tensor(array) for name, array in arrays.items()}

    return Dialect(xp=xp, parameters=parameters)


@contextmanager
def connected(device: str) -> Iterator[None]:
    """The processes that ``torchrun`` has started, with what is made for sums of tensors on ``device``."""
    import torch.distributed

    kind = torch.device(device)
    torch.distributed.init_process_group(torch.distributed.get_default_backend_for_device(kind))
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@hookimpl
def ihvp_backend() -> BackendPlugin:
    """The record of the torch backend."""
    return BackendPlugin(
        name="torch",
        framework="torch",
        install="pip install 'ihvp[torch]'",
        factory=factory,
        types=("torch",),
        capabilities=frozenset(
            {
                "linearize",
                "per_example_grads",
                "gauss_newton",
                "reduce",
                "value",
                "example_products",
                "input_derivatives",
                "layers",
                "blocks",
                "checkpoints",
                "push_forward",
            }
        ),
        dialect=dialect,
        connected=connected,
    )

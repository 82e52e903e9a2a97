"""The record of the torch backend; torch is imported only by what it refers to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ihvp.backend import CAPABILITIES, BackendPlugin, CurvatureBackend, Dialect
from ihvp.hookspecs import hookimpl


def factory(params: Any = None, **options: Any) -> CurvatureBackend:
    """The backend on the device of ``params``."""
    from ihvp_torch._backend import TorchBackend

    return TorchBackend(params, **options)


def dialect() -> Dialect:
    """Array functions and parameters for a loss that is written once for every framework."""
    import array_api_compat.torch as xp
    import torch

    return Dialect(
        xp=xp, parameters=lambda arrays: {name: torch.tensor(array) for name, array in arrays.items()}
    )


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
        capabilities=frozenset(CAPABILITIES) - {"uniform_batches", "product_error"},
        dialect=dialect,
        connected=connected,
    )

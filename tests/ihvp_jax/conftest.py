"""Double precision within each test, and nothing global: other tests of the process see JAX's default."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import jax
import numpy as np
import pytest

from ihvp_jax._backend import JaxBackend


@pytest.fixture
def enable_x64() -> Callable[[bool], AbstractContextManager[None]]:
    """``jax.enable_x64``, which the lowest version of JAX that is declared has in another place."""
    home = jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")
    return home.enable_x64


@pytest.fixture(autouse=True)
def double_precision(enable_x64: Callable[[bool], AbstractContextManager[None]]) -> Iterator[None]:
    with enable_x64(True):
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def backend() -> JaxBackend:
    return JaxBackend()

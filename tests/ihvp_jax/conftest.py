"""Double precision within each test, and nothing global: other tests of the process see JAX's default."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np
import pytest

from ihvp_jax._backend import JaxBackend


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def backend() -> JaxBackend:
    return JaxBackend()

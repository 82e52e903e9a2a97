from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from ihvp.backend import capabilities_of
from ihvp_jax._backend import JaxBackend
from ihvp_jax._plugin import ihvp_backend


def test_importing_the_plugin_does_not_import_jax() -> None:
    code = "import sys, ihvp_jax._plugin as p; p.ihvp_backend(); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_declared_capabilities_are_the_implemented_ones() -> None:
    record = ihvp_backend()
    assert record.capabilities == capabilities_of(record.factory())


def test_factory_makes_a_backend_on_the_device_of_the_parameters() -> None:
    assert isinstance(ihvp_backend().factory(params={"w": jnp.ones(2)}), JaxBackend)
    assert ihvp_backend().factory(params={"w": jnp.ones(2)}).device == JaxBackend().device


def test_dialect_parameters_do_not_share_memory_with_their_source() -> None:
    source = np.zeros(1024)
    dialect = ihvp_backend().dialect
    assert dialect is not None
    parameters = dialect().parameters({"w": source})
    source[:] = 1.0
    assert isinstance(parameters["w"], jax.Array)
    assert float(parameters["w"].sum()) == 0.0

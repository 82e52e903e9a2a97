from __future__ import annotations

import subprocess
import sys

import numpy as np
import tensorflow as tf

from ihvp.backend import CurvatureBackend, capabilities_of
from ihvp_tf._plugin import ihvp_backend


def test_plugin_imports_no_framework() -> None:
    code = (
        "import ihvp_tf, ihvp_tf._plugin as p, sys; p.ihvp_backend(); "
        "sys.exit(any(name in sys.modules for name in ('tensorflow', 'keras')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_declared_capabilities_are_the_implemented_ones() -> None:
    record = ihvp_backend()
    backend = record.factory()
    assert isinstance(backend, CurvatureBackend)
    assert capabilities_of(backend) == record.capabilities


def test_dialect_differentiates_numpy_like_code_on_variables() -> None:
    record = ihvp_backend()
    dialect = record.dialect()
    xp = dialect.xp
    params = dialect.parameters({"w": np.array([[1.0, 2.0], [3.0, 4.0]])})
    assert isinstance(params["w"], tf.Variable)

    def loss(p, batch):
        z = xp.tanh(xp.matmul(batch[0], p["w"])) + xp.asarray(batch[0]) @ p["w"]
        z = z - xp.log(xp.sum(xp.exp(z), axis=1, keepdims=True)) + 0 * xp.max(z, axis=1, keepdims=True)
        return xp.mean(xp.reshape(z, (-1,))[0] ** 2 - 1.5 * p["w"][0, 0])

    product = record.factory(params).hvp(loss, params, (np.eye(2),), np.ones(4))
    assert product.shape == (4,)
    assert np.all(np.isfinite(product))

"""Parameters from files of flax and orbax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import ihvp
from ihvp.errors import DataError, ParameterError

PARAMS = {"params": {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}}
OTHER = jax.tree.map(lambda leaf: leaf + 1.5, PARAMS)
X = np.ones((4, 2), np.float32)


def loss(params, x):
    layer = params["params"]["dense"]
    return ((x @ layer["kernel"] + layer["bias"]) ** 2).mean()


def restored(checkpoint):
    objective = ihvp.Objective(loss, PARAMS, X)
    return ihvp.TracIn(objective, [checkpoint])._models[0][1].objective.params


def same(found):
    assert jax.tree.structure(found) == jax.tree.structure(OTHER)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(OTHER), strict=True):
        assert_array_equal(one, other)


def test_names_may_be_joined_or_nested(tmp_path):
    same(restored(OTHER))
    flat = {"params/dense/kernel": np.full((2, 3), 2.5), "params.dense.bias": np.full(3, 1.5)}
    np.savez(tmp_path / "flat.npz", **flat)
    same(restored(tmp_path / "flat.npz"))


def test_msgpack_of_flax(tmp_path):
    serialization = pytest.importorskip("flax.serialization")
    (tmp_path / "weights.msgpack").write_bytes(serialization.to_bytes(OTHER))
    same(restored(tmp_path / "weights.msgpack"))
    (tmp_path / "torn.msgpack").write_bytes(b"\xc1torn")
    with pytest.raises(DataError, match="cannot be read"):
        restored(tmp_path / "torn.msgpack")


@pytest.mark.filterwarnings("ignore")  # orbax's own
def test_folders_of_orbax(tmp_path):
    orbax = pytest.importorskip("orbax.checkpoint")
    with orbax.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", OTHER)
    same(restored(tmp_path / "saved"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        restored(tmp_path / "empty")


def test_other_architectures():
    wider = {"params": {"dense": {"kernel": jnp.ones((2, 4)), "bias": jnp.zeros(4)}}}
    with pytest.raises(ParameterError, match=r"dense/kernel \(found \(2, 4\), expected \(2, 3\)\)"):
        restored(wider)

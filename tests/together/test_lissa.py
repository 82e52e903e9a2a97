"""LiSSA draws its batches in every framework: arrays, tensors and lists of them give the same answer."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from numpy.testing import assert_allclose

import ihvp
from ihvp._problems import SoftmaxRegression
from ihvp._registry import usable_plugin
from ihvp.algebra import to_numpy
from ihvp.solvers.lissa import LiSSA

PROBLEM = SoftmaxRegression()
V = np.random.default_rng(0).standard_normal((PROBLEM.size, 2))


def native(backend, array):
    """The array as a tensor of the framework."""
    if backend == "torch":
        import torch

        return torch.from_numpy(array)
    if backend == "tf":
        import tensorflow

        return tensorflow.constant(array)
    if backend == "jax":
        import jax.numpy

        return jax.numpy.asarray(array)
    return array


@functools.cache
def written(backend):
    """The loss and the parameters: the same for all forms of data, so that they are compiled once."""
    dialect = usable_plugin(backend).dialect()
    loss = functools.partial(PROBLEM.loss, dialect.xp)
    source = {"grad": PROBLEM.gradient} if backend == "numdiff" else {"loss": loss}
    return source | {"params": dialect.parameters(PROBLEM.params)}


def answer(backend, data):
    objective = ihvp.Objective(**written(backend), data=data, backend=backend)
    solver = LiSSA(recursion_depth=60, batch_size=3, num_samples=2, rtol=None)
    return to_numpy(ihvp.solve(ihvp.Hessian(objective), V, damping=0.5, solver=solver).x)


@functools.cache
def reference():
    return answer("numdiff", PROBLEM.batch)


@pytest.mark.parametrize("backend", ["torch", "tf", "jax"])
@pytest.mark.parametrize("form", ["numpy", "native", "list"])
def test_the_same_seed_gives_the_same_answer_in_every_framework(backend, form):
    data = PROBLEM.batch
    if form != "numpy":
        data = tuple(native(backend, array) for array in data)
    if form == "list":
        data = [tuple(array[:4] for array in data), tuple(array[4:] for array in data)]
    assert_allclose(answer(backend, data), reference(), rtol=1e-6)

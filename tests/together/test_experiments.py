"""The experiments on every backend; JAX computes in float32 where nobody asked for more."""

import csv

import jax
import pytest

from ihvp import experiments
from ihvp.experiments import choice, loo


@pytest.fixture(params=["numdiff", "torch", "jax", "tf"])
def backend(request):
    with jax.enable_x64(False):
        yield request.param


@pytest.fixture(scope="module")
def model():
    return loo.Model()


# What the backends compute is compared elsewhere: test_seed_network.py has the matrices of "hessian".
CASES = [("scale", "jax"), ("scale", "numdiff"), ("damping", "torch"), ("damping", "tf"), ("hessian", "jax")]


@pytest.mark.parametrize(("name", "backend"), CASES, indirect=["backend"])
def test_the_claim_holds(name, backend, tmp_path):
    finding = experiments.run(name, tmp_path, backend)
    assert finding.held, finding.found
    assert all(path.stat().st_size for path in finding.files)


def test_removals_are_predicted_in_single_precision(model, tmp_path, monkeypatch):
    """In double precision test_leave_one_out.py has them, on every backend."""
    monkeypatch.setattr(loo, "Model", lambda: model)
    monkeypatch.setattr(loo, "REMOVALS", 6)
    with jax.enable_x64(False):
        finding = experiments.run("loo", tmp_path, "jax")
    assert finding.held, finding.found
    with finding.files[0].open() as file:
        assert len(list(csv.DictReader(file))) == 6


def test_the_precision_is_that_of_the_backend(backend):
    assert choice.eps(backend) == 2.0 ** (-23 if backend == "jax" else -52)


def test_the_precision_of_jax_may_be_double():
    assert choice.eps("jax") == 2.0**-52

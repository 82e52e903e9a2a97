"""Numpy works on one thread where the cores are a framework's, and has its own back afterwards."""

import numpy as np
import pytest
import scipy.linalg  # noqa: F401 - its own OpenBLAS counts too
import torch
from threadpoolctl import ThreadpoolController

import ihvp
from ihvp import algebra


def threads():
    libraries = ThreadpoolController().select(prefix="libscipy_openblas").info()
    return [library["num_threads"] for library in libraries]


needs_threads = pytest.mark.skipif(
    not threads() or max(threads()) == 1, reason="numpy without OpenBLAS, or a single core"
)


@needs_threads
def test_numpy_takes_one_thread_beside_a_framework():
    with algebra.leaving_the_cores_to(torch.ones(3)):
        assert set(threads()) == {1}


@needs_threads
def test_numpy_keeps_its_threads_for_vectors_of_its_own():
    before = threads()
    with algebra.leaving_the_cores_to(np.ones(3)):
        assert threads() == before


@needs_threads
def test_threads_are_given_back_after_a_failure():
    before = threads()
    with pytest.raises(ZeroDivisionError), algebra.leaving_the_cores_to(torch.ones(3)):
        raise ZeroDivisionError
    assert threads() == before


@needs_threads
def test_a_block_solve_leaves_the_threads_as_they_were():
    before = threads()
    A = ihvp.Dense(torch.diag(torch.arange(1.0, 9.0)))
    ihvp.solve(A, torch.eye(8)[:, :3])
    assert threads() == before


@needs_threads
def test_the_last_of_overlapping_calls_gives_the_threads_back():
    before = threads()
    first, second = (algebra.leaving_the_cores_to(torch.ones(3)) for _ in range(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert set(threads()) == {1}
    second.__exit__(None, None, None)
    assert threads() == before

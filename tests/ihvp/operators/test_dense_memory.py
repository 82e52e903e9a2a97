"""The memory of a dense matrix is stated before any work."""

import logging

import numpy as np
import pytest

import ihvp
from ihvp.errors import TooLarge
from ihvp.operators.opg import OPG


def objective(size, dtype=np.float64):
    def refuse(w, batch):
        raise AssertionError("work was done")

    return ihvp.Objective(params=np.zeros(size, dtype), data=(np.zeros((2, 1)),), grad=refuse)


@pytest.mark.parametrize("operator", [ihvp.Hessian, OPG])
def test_a_matrix_that_does_not_fit_is_refused_before_any_gradient(operator):
    A = operator(objective(10_000_000))
    with pytest.raises(TooLarge, match=r"takes 1,600,000 GB of memory.*eigsh") as caught:
        A.to_dense()
    assert caught.value.needed == A.dense_nbytes == 2 * 8 * 10_000_000**2


def test_the_figure_follows_the_dtype():
    assert ihvp.Hessian(objective(1000, np.float32)).dense_nbytes == 2 * 4 * 1000**2


@pytest.mark.parametrize("operator", [ihvp.Hessian, OPG])
def test_the_figure_is_logged_at_level_info_before_the_work(operator, caplog):
    with caplog.at_level(logging.INFO, "ihvp"), pytest.raises(AssertionError, match="work was done"):
        operator(objective(500)).to_dense()
    assert "takes 0.004 GB of memory" in caplog.text

"""The value of an objective over a backend that evaluates losses itself, and over one that does not."""

import numpy as np
import pytest

import ihvp
from ihvp import errors

X = np.array([[1.0], [2.0], [4.0]])


class Backend:
    device = "cpu"

    def flatten(self, params):
        return params.copy()

    def unflatten(self, vector, like):
        return vector

    def grad(self, loss, params, batch):
        return params - batch.mean(axis=0)

    def hvp(self, loss, params, batch, v):
        return v


class Evaluating(Backend):
    """Gives the loss each batch in units of its own."""

    def value(self, loss, params, batch):
        return loss(params, 10 * batch)


def loss(params, batch):
    return batch.mean()


def test_a_backend_that_can_evaluate_does():
    objective = ihvp.Objective(loss, np.ones(1), [X[:2], X[2:]], backend=Evaluating())
    assert objective.value() == pytest.approx(70 / 3)


def test_otherwise_the_loss_gets_the_batch_as_it_is():
    assert ihvp.Objective(loss, np.ones(1), X, backend=Backend()).value() == pytest.approx(7 / 3)


@pytest.mark.parametrize("backend", [Backend(), Evaluating()], ids=["plain", "evaluating"])
@pytest.mark.parametrize(
    ("returned", "error"),
    [(np.ones(3), errors.LossNotScalar), (None, errors.LossNotScalar), (np.nan, errors.NonFinite)],
)
def test_what_is_no_finite_number_is_refused(backend, returned, error):
    with pytest.raises(error):
        ihvp.Objective(lambda params, batch: returned, np.ones(1), X, backend=backend).value()

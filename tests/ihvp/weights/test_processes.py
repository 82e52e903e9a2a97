"""Data spread over two processes: what one of them has to know of the other."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import ihvp
from ihvp.errors import WeightError


class Processes:
    """Two threads that add up what they reduce, in the order in which they ask."""

    def __init__(self, backend):
        self._meeting, self._sent = threading.Barrier(2, timeout=20), [None, None]
        self.backends = [self._of(rank, type(backend)) for rank in (0, 1)]

    def _of(self, rank, plain):
        processes = self

        class Rank(plain):
            def place(self):
                return rank, 2

            def tell(self, error):
                pass

            def reduce(self, vector):
                processes._sent[rank] = vector
                processes._meeting.wait()
                assert processes._sent[0].shape == processes._sent[1].shape
                assert processes._sent[0].dtype == processes._sent[1].dtype
                total = processes._sent[0] + processes._sent[1]
                processes._meeting.wait()
                return total

        return Rank()

    def run(self, work):
        """What ``work(rank, backend)`` returns, or raises, in both processes."""
        results = [None, None]

        def start(rank):
            try:
                with np.errstate(all="raise"):
                    results[rank] = work(rank, self.backends[rank])
            except Exception as error:
                results[rank] = error
                if not isinstance(error, WeightError):
                    self._meeting.abort()

        threads = [threading.Thread(target=start, args=(rank,)) for rank in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


# How the examples are spread. Where the first process ends at 1, it has the one example that weighs nothing.
ENDS = (1, 2, 8, 17, 22)


@pytest.fixture(params=ENDS)
def spread(request, problem, loss, backend):
    """A function that does something with the objective of each of two processes."""

    def run(use, batch_size=None, **options):
        def work(rank, backend):
            part = slice(0, request.param) if rank == 0 else slice(request.param, None)
            (data,) = problem.rows(part)
            options_ = {"weights": lambda batch: batch[2], **options}
            return use(
                ihvp.Objective(
                    loss, problem.omega, data, batch_size, loss.reduction, backend=backend, **options_
                )
            )

        results = Processes(backend).run(work)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results

    run.end = request.param
    return run


@pytest.mark.parametrize("batch_size", [None, 3])
def test_gradients_and_products_are_those_of_all_examples(spread, problem, batch_size):
    v = np.array([[0.3, -1.0, 2.0, 0.5], [1.0, 0.0, 0.0, 0.0]]).T
    for found in spread(lambda o: o.gradient(), batch_size):
        assert_allclose(found, problem.gradient, rtol=1e-11)
    for found in spread(lambda o: ihvp.Hessian(o) @ v, batch_size):
        assert_allclose(found, problem.hessian() @ v, rtol=1e-10, atol=1e-13)
    for found in spread(lambda o: ihvp.OPG(o) @ v, batch_size):
        assert_allclose(found, problem.opg @ v, rtol=1e-10, atol=1e-13)
    for found in spread(lambda o: ihvp.OPG(o).to_dense(), batch_size):
        assert_allclose(found, problem.opg, rtol=1e-10, atol=1e-13)


def test_rows_average_to_the_gradient_over_all_processes(spread, problem):
    rows = np.concatenate(spread(lambda o: o.per_example_gradients()))
    expected = len(rows) * problem.shares[:, None] * problem.slopes(problem.data)
    assert_allclose(rows, expected, rtol=1e-11)


def test_the_mean_of_all_processes_samples_is_the_operator(spread, problem):
    def matrices(objective):
        draw, generator = ihvp.Hessian(objective).sampler(1), np.random.default_rng(0)
        return np.array([draw(generator).to_dense() for _ in range(400)])

    found, again = spread(matrices)
    assert_array_equal(found, again)
    error = found.std(axis=0) / np.sqrt(len(found))
    assert np.all(np.abs(found.mean(axis=0) - problem.hessian()) < 5 * error + 1e-12)


def test_weights_that_are_all_zero_are_named_by_every_process(problem, loss, backend):
    def work(rank, backend):
        (data,) = problem.rows(slice(0, 8) if rank == 0 else slice(8, 23))
        zero = lambda batch: np.zeros(len(batch[0]))  # noqa: E731
        objective = ihvp.Objective(
            loss, problem.omega, data, 3, loss.reduction, backend=backend, weights=zero, checks=False
        )
        return objective.gradient()

    assert [type(found) for found in Processes(backend).run(work)] == [WeightError, WeightError]

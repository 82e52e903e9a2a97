"""Training on subsets: what is asked after it, on workers, and after an interruption."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import ihvp
from ihvp.backend import GradientFunction
from ihvp.errors import (
    FunctionFailed,
    InvalidOption,
    NonFinite,
    ParameterError,
    StoreMismatch,
    UnequalBatches,
)
from ihvp.evaluate import random_subsets, retrain
from ihvp.influence import StoreDamaged
from ihvp.processes import Processes

from .conftest import TESTS, N, Problem, loss

KILLED = """
import os, signal, sys
from pathlib import Path

import numpy as np

import ihvp

x = np.random.default_rng(0).normal(size=(12, 1))


def loss(w, x):
    return ((w - x) ** 2).mean() / 2


def gradient(w, x):
    return w - x.mean(axis=0)


def train(kept, seed):
    with open("log", "a") as log:
        log.write("training\\n")
    if Path("log").read_text().count("\\n") == 4 and hasattr(signal, "SIGKILL"):
        os.kill(os.getpid(), signal.SIGKILL)
    return x[kept].mean(axis=0)


objective = ihvp.Objective(loss, x.mean(axis=0), x, grad=gradient)
outcomes = ihvp.evaluate.retrain(objective, train, x[:3], 8, out="outcomes")
np.save("losses.npy", outcomes.losses)
"""


def test_losses_are_those_of_models_trained_on_what_was_kept(problem):
    subsets = random_subsets(N, 4)
    found = retrain(problem.objective, problem.train, problem.test, subsets)
    assert_array_equal(found.subsets, subsets)
    assert_allclose(found.losses, [problem.losses(mask) for mask in subsets], rtol=1e-12)


def test_a_number_draws_halves_of_the_data(problem):
    assert_array_equal(
        retrain(problem.objective, problem.train, problem.test, 3).subsets, random_subsets(N, 3)
    )


@pytest.mark.parametrize(("seeds", "numbers"), [(2, [0, 1]), ([3, 5], [3, 5])])
def test_several_seeds_have_their_mean_loss(problem, seeds, numbers):
    found = retrain(problem.objective, problem.train, problem.test, [range(20)], seeds=seeds)
    expected = np.mean([problem.losses(np.arange(20), seed) for seed in numbers], axis=0)
    assert_allclose(found.losses, [expected], rtol=1e-12)


def test_test_points_come_in_any_batches(problem):
    (x, y), subsets = problem.test, random_subsets(N, 2)
    whole = retrain(problem.objective, problem.train, (x, y), subsets)
    parts = retrain(problem.objective, problem.train, [(x[:4], y[:4]), (x[4:], y[4:])], subsets)
    assert_array_equal(parts.losses, whole.losses)


def test_another_question_may_be_asked(problem, sizes):
    found = retrain(problem.objective, problem.train, problem.test, [range(20)], sizes)
    assert_allclose(found.losses[0], (problem.test[0] @ problem.train(np.arange(20), 0)) ** 2, rtol=1e-12)


def test_losses_of_a_sum_are_not_weighed(problem):
    """Each test point is a batch of its own, whatever the loss does over batches."""

    def total(w, batch):
        return loss(w, batch) * len(batch[1])

    objective = ihvp.Objective(
        total, problem.objective.params, problem.data, reduction="sum", grad=lambda w, batch: w
    )
    found = retrain(objective, problem.train, problem.test, [range(20)])
    assert_allclose(found.losses[0], problem.losses(np.arange(20)), rtol=1e-12)


def test_workers_find_the_same(problem):
    alone, together = (retrain(problem.objective, problem.train, problem.test, 3, n_jobs=n) for n in (1, 2))
    assert_array_equal(together.losses, alone.losses)


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_a_killed_run_goes_on_after_the_trainings_that_are_kept(tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(ihvp.__file__).parents[1]), *sys.path]),
    }
    ends = [
        subprocess.run([sys.executable, "killed.py"], cwd=tmp_path, env=environment, check=False).returncode
        for _ in range(2)
    ]
    assert (ends[0] != 0, ends[1]) == (True, 0)
    # Three were kept, the fourth was killed, and five remained.
    assert (tmp_path / "log").read_text().count("\n") == 4 + 5
    x = np.random.default_rng(0).normal(size=(12, 1))
    means = np.array([x[mask].mean() for mask in random_subsets(12, 8)])
    assert_allclose(np.load(tmp_path / "losses.npy"), (means[:, None] - x[:3, 0]) ** 2 / 2, rtol=1e-12)


def test_a_finished_run_trains_no_more_and_reads_the_same(problem, tmp_path, monkeypatch):
    first = retrain(problem.objective, problem.train, problem.test, 4, seeds=2, out=tmp_path)
    assert np.load(tmp_path / "outcomes.npy").shape == (8, TESTS)
    monkeypatch.setattr(type(problem.train), "__call__", lambda *_: pytest.fail("trained again"))
    # The code that trains is part of what the outcomes depend on: the same object is made to fail unseen.
    monkeypatch.setattr("ihvp.fingerprint.of_function", lambda function: "the same")
    with pytest.raises(StoreMismatch, match="train_fn"):
        retrain(problem.objective, problem.train, problem.test, 4, seeds=2, out=tmp_path)
    monkeypatch.undo()
    again = retrain(problem.objective, problem.train, problem.test, 4, seeds=2, out=tmp_path)
    assert_array_equal(again.losses, first.losses)


def test_a_folder_of_zarr_will_do(problem, tmp_path):
    pytest.importorskip("zarr")
    for _ in range(2):
        found = retrain(problem.objective, problem.train, problem.test, 2, out=tmp_path / "kept.zarr")
        assert_allclose(found.losses, [problem.losses(mask) for mask in found.subsets], rtol=1e-12)


def test_a_damaged_training_is_done_again(problem, tmp_path):
    first = retrain(problem.objective, problem.train, problem.test, 3, out=tmp_path)
    kept = np.load(tmp_path / "outcomes.npy", mmap_mode="r+")
    kept[1, 2] += 1
    kept.flush()
    with pytest.warns(
        StoreDamaged, match="the outcomes of trainings 1 to 1 and test points 0 to 5 in outcomes.npy"
    ):
        again = retrain(problem.objective, problem.train, problem.test, 3, out=tmp_path)
    assert_array_equal(again.losses, first.losses)


def test_outcomes_of_other_runs_are_refused(problem, sizes, tmp_path):
    objective, train, test = problem.objective, problem.train, problem.test
    retrain(objective, train, test, 3, out=tmp_path)
    x, y = problem.data
    other = ihvp.Objective(loss, objective.params, (x + 1, y), grad=objective.loss.grad)
    runs = {
        "training data": lambda: retrain(other, train, test, 3, out=tmp_path),
        "train_fn": lambda: retrain(objective, type(train)(x + 1, y), test, 3, out=tmp_path),
        "test data": lambda: retrain(objective, train, (test[0] + 1, test[1]), 3, out=tmp_path),
        "test loss": lambda: retrain(objective, train, test, 3, sizes, out=tmp_path),
        "subsets": lambda: retrain(objective, train, test, random_subsets(N, 3, seed=1), out=tmp_path),
        "seeds": lambda: retrain(objective, train, test, 3, seeds=[1], out=tmp_path),
    }
    for name, run in runs.items():
        with pytest.raises(StoreMismatch) as caught:
            run()
        assert set(caught.value.differing) == {name}


def test_other_parameters_of_the_objective_have_the_same_outcomes(problem, tmp_path):
    first = retrain(problem.objective, problem.train, problem.test, 2, out=tmp_path)
    moved = problem.objective.at(problem.objective.params + 1)
    assert_array_equal(retrain(moved, problem.train, problem.test, 2, out=tmp_path).losses, first.losses)


def test_a_training_that_changes_the_objective_is_named():
    problem = Problem()

    def train(kept, seed):
        problem.objective.params[:] = problem.train(kept, seed)
        return problem.objective.params

    with pytest.raises(ParameterError, match="train_fn changed the parameters of the objective itself"):
        retrain(problem.objective, train, problem.test, 3)


@pytest.mark.parametrize(
    ("train", "error", "text"),
    [
        (None, InvalidOption, r"a function train_fn\(kept, seed\)"),
        (lambda kept, seed: None, InvalidOption, "it returned None"),
        (lambda kept, seed: np.full(4, np.inf), ParameterError, "after training on subset 0 with seed 0"),
        (lambda kept, seed: np.zeros(5), ParameterError, r"expected numpy.ndarray of shape \(4,\)"),
        (lambda kept, seed: np.full(4, 1e200), NonFinite, "after training on subset 0 with seed 0"),
        (lambda kept: np.zeros(4), FunctionFailed, r"train_fn\(kept, seed\) failed with TypeError"),
    ],
)
def test_a_training_that_fails_is_named(problem, train, error, text):
    with np.errstate(over="ignore"), pytest.raises(error, match=text):
        retrain(problem.objective, train, problem.test, 2)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"seeds": 0}, "seeds is 0"),
        ({"seeds": [-1]}, "seeds"),
        ({"seeds": "1"}, "seeds"),
        ({"seeds": 1.5}, "seeds"),
        ({"n_jobs": 0}, "n_jobs"),
        ({"subsets": 0}, "count is 0"),
        ({"subsets": [[0, N]]}, f"from 0 to {N - 1}"),
        ({"subsets": np.ones((2, 3), bool)}, f"booleans \\(m, {N}\\)"),
        ({"out": 3}, "out"),
        ({"test_loss": 3}, "test_loss"),
    ],
)
def test_bad_options_are_refused_before_any_training(problem, options, text):
    with pytest.raises(InvalidOption, match=text):
        retrain(problem.objective, lambda *_: pytest.fail("trained"), problem.test, **options)


def test_test_data_of_another_form_is_refused_before_any_training(problem):
    with pytest.raises(UnequalBatches):
        retrain(problem.objective, lambda *_: pytest.fail("trained"), problem.test[0])


def test_a_loss_that_is_known_by_its_gradient_alone_is_refused(problem):
    objective = ihvp.Objective(
        params=problem.objective.params, data=problem.data, grad=problem.objective.loss.grad
    )
    with pytest.raises(InvalidOption, match="a loss beside grad"):
        retrain(objective, lambda *_: pytest.fail("trained"), problem.test)
    values = GradientFunction(objective.loss.grad, loss)
    assert retrain(objective, problem.train, problem.test, 1, values).losses.shape == (1, TESTS)


def test_data_that_is_spread_over_processes_is_refused(problem, monkeypatch):
    monkeypatch.setattr(ihvp.Objective, "processes", Processes(0, 2))
    with pytest.raises(InvalidOption, match="an objective of one process"):
        retrain(problem.objective, problem.train, problem.test)


def test_what_is_no_objective_is_refused(problem):
    with pytest.raises(InvalidOption, match=r"an ihvp\.Objective"):
        retrain(None, problem.train, problem.test)

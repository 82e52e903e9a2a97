"""The first message about a network at default settings leads to calls that work."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import ihvp


@pytest.fixture
def objective():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    x, y = torch.randn(60, 5), torch.randint(3, (60,))
    return ihvp.Objective(
        lambda outputs, batch: torch.nn.functional.cross_entropy(outputs, batch[1]),
        model,
        (x, y),
        predict=lambda model, batch: model(batch[0]),
    )


@pytest.mark.filterwarnings("ignore::ihvp.influence.NotAtOptimum")
@pytest.mark.parametrize("question", ["scores", "self_influence"])
def test_advised_calls_work(objective, question):
    def ask(influence):
        data = objective.batches.data
        return influence.scores(data) if question == "scores" else influence.self_influence()

    with pytest.raises(ihvp.errors.IndefiniteCurvature) as caught:
        ask(ihvp.Influence(objective, solver=ihvp.CG()))
    calls = re.findall(r"ihvp\.Influence\(objective, damping=[^)]*?(?:\(objective\)\)|\))", str(caught.value))
    assert len(calls) == 2
    assert "GaussNewton" in calls[1]
    for call in calls:
        assert ask(eval(call)).residual <= 1e-5


@pytest.mark.filterwarnings("ignore::ihvp.influence.NotAtOptimum")
def test_a_network_is_led_to_its_gauss_newton_matrix_and_told_so_once(objective):
    data = objective.batches.data
    influence = ihvp.Influence(objective)
    with pytest.warns(ihvp.influence.IndefiniteHessian, match="ihvp.Hessian"):
        scores = influence.scores(data)
    influence.self_influence()  # a second warning would be an error
    damping = influence.inverse.damping
    assert damping > 0
    named = ihvp.Influence(objective, damping, curvature=ihvp.GaussNewton(objective))
    np.testing.assert_array_equal(scores, named.scores(data))


@pytest.mark.filterwarnings("error::ihvp.influence.IndefiniteHessian")
@pytest.mark.filterwarnings("ignore::ihvp.influence.NotAtOptimum")
def test_a_definite_hessian_stays(objective):
    assert isinstance(ihvp.Influence(objective, damping=10.0).inverse.operator, ihvp.Hessian)
    model = torch.nn.Linear(5, 3)
    convex = ihvp.Objective(objective.output_loss, model, objective.batches.data, predict=objective.predict)
    assert isinstance(ihvp.Influence(convex, damping=1e-3).inverse.operator, ihvp.Hessian)


def test_a_curvature_that_is_named_stays(objective):
    influence = ihvp.Influence(objective, curvature=ihvp.Hessian(objective))
    assert isinstance(influence.inverse.operator, ihvp.Hessian)

"""The first message about a network at default settings leads to calls that work."""

from __future__ import annotations

import re

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
        ask(ihvp.Influence(objective))
    calls = re.findall(r"ihvp\.Influence\(objective, damping=[^)]*?(?:\(objective\)\)|\))", str(caught.value))
    assert len(calls) == 2
    assert "GaussNewton" in calls[1]
    for call in calls:
        assert ask(eval(call)).residual <= 1e-5

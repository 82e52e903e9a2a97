import numpy as np
import pytest
from numpy.testing import assert_allclose
from typer.testing import CliRunner

from ihvp._registry import usable_plugin
from ihvp.cli import app
from ihvp.cli.attribution import attribute, prove, train, worst_mistake
from ihvp.experiments import digits


@pytest.fixture(scope="module")
def setting():
    return train(usable_plugin("numdiff"), *digits.load())


@pytest.fixture(scope="module")
def attribution(setting):
    return attribute(setting, worst_mistake(setting))


def dense_hessian(setting):
    """``H + λI`` of softmax regression by its closed form ``1/N Σ (diag(p) − ppᵀ) ⊗ xxᵀ``."""
    x = setting.train.images
    p = digits.probabilities(setting.optimum.weights.reshape(65, 10), x)
    rows = np.einsum("ni,nc->nic", x, p).reshape(len(x), 650)
    hessian = -rows.T @ rows
    for c in range(10):
        hessian[c::10, c::10] += (x.T * p[:, c]) @ x
    hessian /= len(x)
    return hessian + digits.DECAY * np.eye(650)


def gradients(setting, some):
    p = digits.probabilities(setting.optimum.weights.reshape(65, 10), some.images)
    return np.einsum("ni,nc->nic", some.images, p - np.eye(10)[some.labels]).reshape(len(some.labels), 650)


def test_training_reaches_the_optimum(setting):
    gradient = gradients(setting, setting.train).mean(axis=0) + digits.DECAY * setting.optimum.weights
    assert np.linalg.norm(gradient) <= 1e-8


def test_the_test_digit_is_misread(setting, attribution):
    assert setting.predictions[attribution.index].argmax() != setting.test.labels[attribution.index]


def test_scores_are_those_of_dense_linear_algebra(setting, attribution):
    question = gradients(setting, setting.test)[attribution.index]
    expected = gradients(setting, setting.train) @ np.linalg.solve(dense_hessian(setting), question) / 1500
    assert_allclose(attribution.scores, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_predicted_change_is_the_actual_one_to_first_order(setting, attribution):
    proof = prove(setting, attribution, attribution.influence.most_harmful(10)[0])
    assert proof.predicted < 0
    assert proof.actual / proof.predicted == pytest.approx(1, abs=0.25)


def test_removing_one_digit_changes_the_loss_as_its_score_says(setting, attribution):
    proof = prove(setting, attribution, attribution.influence.most_helpful(1)[0])
    assert proof.actual / proof.predicted == pytest.approx(1, abs=0.1)


def test_the_command_tells_the_story_and_draws_it(tmp_path):
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path)], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    assert "predicted change" in result.output
    assert "actual change" in result.output
    assert (tmp_path / "digits.png").stat().st_size > 10_000


def test_a_missing_package_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "pip install 'ihvp[demo]'" in result.output.replace("\n", " ")

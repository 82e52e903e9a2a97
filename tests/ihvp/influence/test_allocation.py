"""Results that do not fit in memory are refused before any solve."""

from __future__ import annotations

import numpy as np
import psutil
import pytest

from ihvp.errors import TooLarge


@pytest.fixture
def influence(small, monkeypatch):
    """Of a machine with a hundred free bytes; a solve fails the test."""
    influence = small.influence()
    monkeypatch.setattr(influence.inverse, "solve", lambda *args, **kwargs: pytest.fail("work was done"))
    memory = psutil.virtual_memory()._replace(available=100)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    return influence


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (lambda influence, test: influence.scores(test), r"all scores, 5 × 23, takes .*out=….*top_k"),
        (lambda influence, test: influence.on_inputs(test), r"derivatives, 5 × 23 × 4, .*fewer test points"),
        (lambda influence, test: influence.inverse_products(test), r"products, 5 × 12, .*fewer test points"),
        (lambda influence, test: influence.group([[i] for i in range(9)], test), r"5 × 9, .*fewer groups"),
        (
            lambda influence, test: influence.group([[i] for i in range(9)], test, second_order=True),
            r"5 × 9, .*fewer groups",
        ),
    ],
    ids=["scores", "on_inputs", "inverse_products", "group", "group, second order"],
)
def test_results_that_do_not_fit_are_refused_with_advice(small, influence, ask, text):
    with pytest.raises(TooLarge, match=text):
        ask(influence, small.test)


def test_what_streams_needs_no_room_for_all_scores(small, influence, monkeypatch, tmp_path):
    monkeypatch.undo()
    full = small.influence()
    memory = psutil.virtual_memory()._replace(available=100)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    streamed = full.scores(small.test, out=tmp_path / "scores")
    assert np.allclose(streamed, small.defined(), rtol=1e-8, atol=1e-12)
    assert full.top_k(small.test, 2).indices.shape == (5, 2)

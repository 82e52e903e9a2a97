"""What a computation shows while it runs."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import ihvp
from ihvp.progress import Monitor, Step, track


class Terminal:
    """A stream that says it is a terminal."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


def solve(**options):
    return ihvp.solve(ihvp.Dense(np.diag([1.0, 2.0, 3.0])), np.ones(3), **options)


def test_progress_shows_a_bar_with_the_residual(capsys):
    solve(progress=True)
    shown = capsys.readouterr().err
    assert "CG" in shown


def test_of_several_processes_the_first_alone_shows_its_progress(capsys):
    with track("Scores", 1000, True, rank=1) as advance, Monitor("CG", progress=True, rank=1) as monitor:
        advance(7)
        monitor.step(Step(1, 0.5, 1))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("progress", [False, None])
def test_nothing_is_shown_where_nothing_should_be(capsys, progress):
    solve(progress=progress)
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_no_bar_is_shown_in_a_terminal_when_silenced(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    solve(progress=False)
    assert terminal.text == ""


def test_bar_in_a_terminal_waits_a_second(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Monitor("CG") as monitor:
        monitor.step(Step(1, 0.5, 1))
    assert "CG" not in terminal.text


def test_bar_is_closed_after_an_error(capsys):
    monitor = Monitor("CG", progress=True)
    bar = monitor._bar
    with pytest.raises(RuntimeError), monitor:
        raise RuntimeError
    assert bar.disable


def test_callback_gets_each_step():
    steps = []
    with Monitor("CG", steps.append) as monitor:
        monitor.step(Step(1, 0.5, 2))
        monitor.step(Step(2, 0.25, 1))
    assert steps == [Step(1, 0.5, 2), Step(2, 0.25, 1)]


def test_error_of_the_callback_comes_through():
    def callback(step):
        raise KeyError("stop")

    with pytest.raises(KeyError):
        solve(callback=callback)


def test_a_file_hears_of_long_work_once_a_minute(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("ihvp.progress.time.monotonic", lambda: now[0])
    with Monitor("CG") as monitor, track("Scores", 1000, None) as advance:
        for iteration in range(1, 7):
            now[0] += 25.0
            monitor.step(Step(iteration, 0.5, 3))
            advance(100)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["CG", "Scores", "CG", "Scores"]
    assert "residual 5.0e-01, columns 3" in lines[0]
    assert "30%" in lines[1]

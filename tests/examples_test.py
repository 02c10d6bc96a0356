"""The examples run from end to end."""

import importlib
import importlib.util
import signal
import sys

import pytest

from examples import finish, resume


@pytest.mark.long
@pytest.mark.parametrize("name", ["exact_match", "policy"])
def test_an_example_runs(name, monkeypatch, capsys):
    if name == "policy" and importlib.util.find_spec("gymnax") is None:
        pytest.skip("NOT CHECKED: gymnax is not installed; `make test-clients` installs it")
    monkeypatch.setattr(sys, "argv", [name, "--quick"])
    importlib.import_module(f"examples.{name}").main()
    assert "'way': 'factored'" in capsys.readouterr().out


def test_a_finish_on_the_metric_beats_more_gradient_steps(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["finish", "--quick"])
    finish.main()
    assert "{'seeds': 3, 'better with a finish': 3}" in capsys.readouterr().out
    # Both phases together cost what the steps of Adam alone do, but for less than a step.
    prices = finish.FORWARDS_PER_GRADIENT * finish.BATCH
    total = finish.STEPS + finish.FINISH // prices
    assert 0 <= finish.STEPS * prices + finish.FINISH - total * prices < prices
    assert abs(finish.FINISH / (total * prices) - 0.1) < 1e-3


@pytest.mark.long
def test_a_killed_run_goes_on_with_the_same_bits_and_on_another_mesh(tmp_path):
    found = resume.demonstrate(tmp_path)
    assert found["exit status"] == -signal.SIGKILL
    assert found["same mesh"] == 0
    assert found["other mesh"] < 2e-5

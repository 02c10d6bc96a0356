"""The examples run from end to end."""

import importlib
import importlib.util
import signal
import sys

import pytest

from examples import resume


@pytest.mark.long
@pytest.mark.parametrize("name", ["exact_match", "policy"])
def test_an_example_runs(name, monkeypatch, capsys):
    if name == "policy" and importlib.util.find_spec("gymnax") is None:
        pytest.skip("NOT CHECKED: gymnax is not installed; `make test-clients` installs it")
    monkeypatch.setattr(sys, "argv", [name, "--quick"])
    importlib.import_module(f"examples.{name}").main()
    assert "'way': 'factored'" in capsys.readouterr().out


@pytest.mark.long
def test_a_killed_run_goes_on_with_the_same_bits_and_on_another_mesh(tmp_path):
    found = resume.demonstrate(tmp_path)
    assert found["exit status"] == -signal.SIGKILL
    assert found["same mesh"] == 0
    assert found["other mesh"] < 2e-5

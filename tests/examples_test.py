"""The examples run from end to end."""

import importlib
import importlib.util
import sys

import pytest


@pytest.mark.long
@pytest.mark.parametrize("name", ["exact_match", "policy"])
def test_an_example_runs(name, monkeypatch, capsys):
    if name == "policy" and importlib.util.find_spec("gymnax") is None:
        pytest.skip("NOT CHECKED: gymnax is not installed; `make test-clients` installs it")
    monkeypatch.setattr(sys, "argv", [name, "--quick"])
    importlib.import_module(f"examples.{name}").main()
    assert "'way': 'factored'" in capsys.readouterr().out

"""A trick on the compiler that only a program for an accelerator shows, with and without."""

import pytest

from aot.compiled import LEAF_COUNT, compile_step, missing
from egd_optax.backend import xla


def test_elites_come_from_the_host_one_leaf_at_a_time(monkeypatch):
    if reason := missing("H100"):
        pytest.skip(f"NOT CHECKED: {reason}")
    case = ("H100", "host", 16, 8)
    leaf_by_leaf = compile_step(*case)
    monkeypatch.setattr(xla, "fetch_after", lambda value, previous: (value, previous))
    all_at_once = compile_step.__wrapped__(*case)
    assert all_at_once.device > leaf_by_leaf.device + 1 / LEAF_COUNT

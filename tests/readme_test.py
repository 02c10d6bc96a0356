"""The README's program without prompts runs as pasted; doctest runs those with prompts."""

import inspect
from pathlib import Path
import re

import egd_optax
from egd_optax import evolve

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_first_program_runs_as_pasted(capsys):
    programs = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    pasted = [program for program in programs if ">>>" not in program]
    assert pasted
    for program in pasted:
        names = {}
        exec(program, names)
        assert int(names["state"].cycle) == 2
        assert names["loss"](names["params"]) < names["loss"](names["jnp"].linspace(1.0, 2.0, 8))
    assert "CycleInfo" in capsys.readouterr().out


def test_every_argument_is_in_the_table():
    section = README.split("## Arguments")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section, flags=re.MULTILINE)
    arguments = inspect.signature(evolve).parameters
    assert [name for name, _ in rows] == [name for name in arguments if name != "base"]
    for name, default in rows:
        assert eval(default.strip("`"), vars(egd_optax)) == arguments[name].default

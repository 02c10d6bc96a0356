"""Options of XLA are asked for where this XLA knows them, and in one place."""

import os
from pathlib import Path
import re
import subprocess
import sys

import jax
import pytest

import xla_options

ROOT = Path(__file__).parents[1]
FOLDERS = "aot", "benchmarks", "demo", "docs", "egd_optax", "examples", "tests"


@pytest.fixture
def made_up(monkeypatch):
    """A set with an option that no XLA knows."""
    options = {"xla_cpu_made_up": False, "xla_backend_optimization_level": 0}
    monkeypatch.setattr(xla_options, "SETS", {"made_up": options})
    return "made_up"


def test_an_option_that_xla_does_not_know_is_left_out(made_up):
    assert xla_options.known(made_up) == {"xla_backend_optimization_level": 0}
    assert xla_options.flags(made_up) == "--xla_backend_optimization_level=0"
    assert jax.jit(lambda: 1, compiler_options=xla_options.known(made_up))() == 1


@pytest.mark.parametrize("name", xla_options.SETS)
def test_every_set_compiles(name):
    assert jax.jit(lambda: 1, compiler_options=xla_options.known(name))() == 1


def test_flags_are_written_as_xla_reads_them(monkeypatch):
    options = {"xla_llvm_disable_expensive_passes": True, "xla_dump_to": ""}
    monkeypatch.setattr(xla_options, "SETS", {"some": options})
    assert xla_options.flags("some") == "--xla_llvm_disable_expensive_passes=true --xla_dump_to="


def test_xla_is_asked_on_a_mesh_and_in_a_trace_too(made_up):
    xla_options._is_known.cache_clear()
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

    def traced(x):
        assert len(xla_options.known(made_up)) == 1
        return x

    with jax.set_mesh(mesh):
        assert jax.jit(traced)(1) == 1


def test_a_command_gets_the_flags_beside_those_that_are_there():
    code = "import os, jax; jax.numpy.ones(3); print(os.environ['XLA_FLAGS'])"
    command = [sys.executable, "-m", "xla_options", "hurried", sys.executable, "-c", code]
    found = subprocess.run(
        command, cwd=ROOT, env=dict(os.environ, XLA_FLAGS="--xla_dump_to="),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.split() == ["--xla_dump_to=", *xla_options.flags("hurried").split()]


def test_no_other_file_names_an_option():
    sources = [ROOT / "Makefile", ROOT / "noxfile.py", ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    for folder in FOLDERS:
        sources += [path for end in ("py", "md") for path in (ROOT / folder).rglob(f"*.{end}")]
    # An option begins with what it is for. All releases know that of simulated devices.
    asked = re.compile(r"\bxla_(?:backend|cpu|gpu|tpu|llvm|dump)_\w+")
    own = {Path(__file__).name}
    found = {path.name for path in sources if asked.search(path.read_text())}
    assert found - own == set()

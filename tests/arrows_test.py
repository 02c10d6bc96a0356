"""Imports run one way: between the packages beside the library, and within its cycle."""

import ast
import graphlib
from pathlib import Path
import re

import pytest

import egd_optax._cycle

ROOT = Path(__file__).parents[1]
PACKAGES = ("aot", "benchmarks", "demo")
# The files of a cycle: each may import those behind it.
FILES = (
    "programs",
    "pairs",
    "cycle",
    "generation",
    "evaluation",
    "score",
    "batches",
    "unformed",
    "total",
    "strategy",
    "storage",
    "elites",
    "weights",
    "accept",
    "place",
    "members",
    "draws",
    "numbers",
    "parts",
    "fitness",
    "counted",
    "axes",
    "reset",
    "frozen",
    "constant",
    "arguments",
    "dependence",
    "parent",
    "stacks",
    "threefry",
    "platform",
    "xla",
    "spec",
    "auxiliary",
)
# What is built on a cycle, and what only some users have.
ABOVE = (
    "egd_optax._egd",
    "egd_optax._evolve",
    "egd_optax.egd",
    "egd_optax.evolve",
    "egd_optax.flax",
    "egd_optax.presets",
    "flax",
)
# Of the library that is tested: an installed one has no sources beside the tests.
CYCLE = sorted(Path(egd_optax._cycle.__file__).parent.glob("*.py"))


def imports(path):
    """The dotted names of all that a file imports, at its top or within a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: not an absolute import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(name, package):
    return f"{name}.".startswith(f"{package}.")


def arrows():
    """The other packages that each package imports."""
    return {
        package: {
            other
            for path in (ROOT / package).rglob("*.py")
            for name in imports(path)
            for other in PACKAGES
            if other != package and is_within(name, other)
        }
        for package in PACKAGES
    }


def test_packages_import_each_other_one_way():
    graphlib.TopologicalSorter(arrows()).prepare()  # raises on a cycle


def test_benchmarks_do_without_the_demo():
    assert "demo" not in arrows()["benchmarks"]


def test_the_files_of_a_cycle_are_those_in_order_here():
    assert {path.stem for path in CYCLE} == {"__init__", *FILES}
    assert re.findall(r"^(\w+)  ", egd_optax._cycle.__doc__, re.MULTILINE) == list(FILES)


@pytest.mark.parametrize("path", CYCLE, ids=lambda path: path.stem)
def test_a_file_of_a_cycle_imports_only_those_behind_it(path):
    if path.stem == "__init__":
        return
    behind = FILES[FILES.index(path.stem) + 1 :]
    for name in imports(path):
        if is_within(name, "egd_optax._cycle"):
            assert any(is_within(name, f"egd_optax._cycle.{file}") for file in behind), name


@pytest.mark.parametrize("path", CYCLE, ids=lambda path: path.stem)
def test_a_cycle_knows_nothing_of_what_is_built_on_it(path):
    for name in imports(path):
        assert not any(is_within(name, above) for above in ABOVE), name

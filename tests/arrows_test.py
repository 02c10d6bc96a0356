"""Imports run one way: between the packages beside the library, and within its cycle."""

import ast
import graphlib
from pathlib import Path
import re

import pytest

import egd_optax

ROOT = Path(__file__).parents[1]
PACKAGES = ("aot", "benchmarks", "demo")
# The layers of the library: each file may import those of its own layer, and those behind it.
LAYERS = {
    "above": (
        "__init__",
        "_egd",
        "_evolve",
        "_step",
        "_due",
        "_gradients",
        "_state",
        "_ticket",
        "_asked",
        "ask_tell",
        "_programs",
        "_settings",
        "_key",
        "presets",
        "flax",
        "diagnose",
        "checkpoint",
        "wrappers",
    ),
    "callback": None,
    "core": None,
    "factored": None,
    "base": None,
    "operators": ("_axes", "_advice", "noise", "sigma", "recombine", "accept", "execution"),
    "backend": None,
    "checks": ("_checks", "_written", "_jax"),
}
# The files of a cycle: each may import those behind it.
CORE = (
    "cycle",
    "generation",
    "child",
    "stage",
    "judge",
    "strategy",
    "sums",
    "rows",
    "pending",
    "terms",
    "evaluate",
    "unformed",
    "info",
    "norm",
    "select",
    "population",
    "refinement",
    "fitness",
    "blocks",
    "perturbation",
    "deviation",
    "residual",
    "bounds",
    "spec",
    "auxiliary",
)
# The words of evolution, which the layer below does not know.
EVOLUTION = r"evol|popul|mutat|elite|fitness|generation|offspring|parent|child|genome|antithetic"
# Of the library that is tested: an installed one has no sources beside the tests.
LIBRARY = Path(egd_optax.__file__).parent
FILES = sorted(LIBRARY.rglob("*.py"))


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


def layer_of(parts):
    """The layer of a file of the library, or of what is imported from it, by its dotted name."""
    for layer, files in LAYERS.items():
        if (files is None and parts[0] == layer) or (files and parts[0] in files):
            return layer
    return None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_a_file_imports_from_its_layer_and_those_below(path):
    parts = path.relative_to(LIBRARY).with_suffix("").parts
    own = layer_of(parts)
    assert own, f"{parts} belongs to no layer"
    order = list(LAYERS)
    if own == "above":
        return
    for name in imports(path):
        if is_within(name, "egd_optax"):
            other = layer_of(name.split(".")[1:])
            assert other is None or order.index(other) >= order.index(own), name


def test_the_files_of_a_cycle_are_those_in_order_here():
    assert {path.stem for path in (LIBRARY / "core").glob("*.py")} == {"__init__", *CORE}


@pytest.mark.parametrize("name", CORE)
def test_a_file_of_a_cycle_imports_only_those_behind_it(name):
    behind = CORE[CORE.index(name) + 1 :]
    for imported in imports(LIBRARY / "core" / f"{name}.py"):
        if is_within(imported, "egd_optax.core") and imported != "egd_optax.core.auxiliary":
            assert any(is_within(f"{imported}.", f"egd_optax.core.{file}") for file in behind), (
                imported
            )


@pytest.mark.parametrize("name", CORE)
def test_the_algorithm_knows_nothing_of_meshes_and_of_the_compiler(name):
    source = (LIBRARY / "core" / f"{name}.py").read_text()
    assert "optimization_barrier" not in source
    for imported in imports(LIBRARY / "core" / f"{name}.py"):
        assert not is_within(imported, "jax.sharding"), imported


@pytest.mark.parametrize("path", sorted((LIBRARY / "backend").glob("*.py")), ids=lambda p: p.stem)
def test_the_backend_has_no_word_of_evolution(path):
    for line in path.read_text().splitlines():
        assert not re.search(EVOLUTION, line, re.IGNORECASE), line

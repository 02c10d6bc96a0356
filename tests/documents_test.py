"""The documentation is complete: arguments, links, examples, versions."""

import inspect
import json
from pathlib import Path
import re
import tomllib

from public import public
import pytest
import versions

import egd_optax
from egd_optax import evolve

ROOT = Path(__file__).parents[1]


def test_every_argument_is_in_the_table():
    text = (ROOT / "docs/api/evolve.md").read_text()
    section = text.split("## `evolve`")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", section, flags=re.MULTILINE)
    arguments = inspect.signature(evolve).parameters
    assert [name for name, _ in rows] == [name for name in arguments if name != "base"]
    for name, default in rows:
        if name == "es_optimizer":  # two optimizers of optax are never equal
            assert default == "`optax.sgd(1.0)`"
            continue
        assert eval(default.strip("`"), vars(egd_optax)) == arguments[name].default


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 100
    links = re.findall(r'\]\(([^)#]+)(?:#[\w-]+)?\)|(?:src|srcset)="([^"]+)"', text)
    local = [link for pair in links for link in pair if link and not link.startswith("http")]
    assert len(local) > 15
    assert not [link for link in local if not (ROOT / link).exists()]


GUIDE = [
    path
    for name in ("start", "cookbook", "concepts", "extend")
    for path in sorted((ROOT / "docs" / name).glob("*.md"))
]


@pytest.mark.parametrize("path", GUIDE, ids=lambda path: path.stem)
def test_a_page_of_the_guide_links_to_the_reference(path):
    assert path.stem == "index" or "](../api/" in path.read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "docs/api").glob("*.md")), ids=lambda p: p.stem)
def test_a_page_of_the_reference_links_to_the_guide(path):
    assert re.search(r"^Guide: \[", path.read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize(("name", "text"), dict(public()).items())
def test_everything_public_has_an_example(name, text):
    assert ">>>" in text


def test_the_citation_is_of_this_version():
    assert f"\nversion: {egd_optax.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_page_of_versions_is_what_the_command_makes_of_the_runs():
    runs = json.loads(versions.RUNS.read_text())
    assert versions.PAGE.read_text() == versions.page(runs)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    supported = re.findall(r":: (3\.\d+)$", "\n".join(project["classifiers"]), flags=re.MULTILINE)
    ran = [(run["versions"]["python"].rpartition(".")[0], run["resolution"]) for run in runs]
    assert ran
    assert len(set(ran)) == len(ran)
    assert set(ran) <= {(python, end) for python in supported for end in versions.ENDS}


def test_types_come_with_the_package():
    assert (Path(egd_optax.__file__).parent / "py.typed").exists()


def test_pictures_are_light():
    for path in (ROOT / "docs/pictures").glob("*.png"):
        assert path.stat().st_size < 200_000

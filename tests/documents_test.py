"""What README and guide show runs as pasted; doctest runs what has prompts."""

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
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
BUILT = {"_build", "notebooks"}
DOCUMENTS = [path for path in DOCUMENTS if not BUILT & set(path.relative_to(ROOT).parts)]
# Programs of other libraries: `tests/clients` has each of them.
ELSEWHERE = {"works_with.md"}


def programs(path):
    """The blocks of Python without prompts."""
    blocks = re.findall(
        r"^```(?:python|py|\{code-block\} python)\n(.*?)^```", path.read_text(), flags=re.M | re.S
    )
    return [block for block in blocks if ">>>" not in block]


def test_there_are_documents():
    assert {"README.md", "index.md", "progress.md", "value_fn.md"} <= {p.name for p in DOCUMENTS}
    assert sum(len(programs(path)) for path in DOCUMENTS) >= 4


@pytest.mark.parametrize(
    "path",
    [path for path in DOCUMENTS if programs(path) and path.name not in ELSEWHERE],
    ids=lambda path: path.stem,
)
def test_programs_run_as_pasted_and_train(path, capsys):
    for program in programs(path):
        names = {}
        exec(program, names)
        assert int(names["state"].cycle) >= 2
        start = names["tx"].init(names["params"])
        assert names["state"].info.cycle_index > start.info.cycle_index
        assert names["loss"](names["params"]) < 2
        if path.stem == "progress":
            bar = capsys.readouterr().err
            assert "100/100" in bar
            assert "fitness=" in bar


def test_every_argument_is_in_the_table():
    text = (ROOT / "docs/guide/optimizer.md").read_text()
    section = text.split("## Arguments")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section, flags=re.MULTILINE)
    arguments = inspect.signature(evolve).parameters
    assert [name for name, _ in rows] == [name for name in arguments if name != "base"]
    for name, default in rows:
        if name == "es_optimizer":  # two optimizers of optax are never equal
            assert default == "`optax.sgd(1.0)`"
            continue
        assert eval(default.strip("`"), vars(egd_optax)) == arguments[name].default


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    links = re.findall(r'\]\(([^)#]+)(?:#[\w-]+)?\)|(?:src|srcset)="([^"]+)"', text)
    local = [link for pair in links for link in pair if link and not link.startswith("http")]
    assert len(local) > 15
    assert not [link for link in local if not (ROOT / link).exists()]


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

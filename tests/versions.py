"""What ran on which versions: a line for the head of a run, and a page of the documentation.

python tests/versions.py show RECORD        what a file of `pytest --record RECORD` tells
python tests/versions.py add RESOLUTION FOLDER [FAILED ...]    see `noxfile.py`
python tests/versions.py page               writes the page anew from what was added
"""

import datetime
import importlib.metadata
import json
from pathlib import Path
import platform
import sys

PACKAGES = "jax", "jaxlib", "optax", "flax"
ENDS = "lowest", "pinned", "highest"
OUTCOMES = "passed", "failed", "error", "skipped", "xfailed", "xpassed"
RUNS = Path(__file__).parents[1] / "docs/compatibility/versions.json"
PAGE = RUNS.with_suffix(".md")
HEAD = """\
# Versions that were tested

The last run of `make test`, or `make test-matrix`, on each Python. "lowest" has the lowest versions
that `pyproject.toml` admits, "pinned" those of `requirements.lock`, and "highest" the newest of
that day. `fast` tests run in code that XLA hardly optimises, `exact` ones as for a user. The types
are checked against the JAX of the row. Versions without a row have not run since this page is kept.

"""


def here():
    """The versions of this environment, by name."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def in_words(versions):
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def counted(stats):
    """How many tests ended how, of the reports of pytest by their outcome."""
    counts = {outcome: len(stats.get(outcome, ())) for outcome in OUTCOMES}
    return {outcome: count for outcome, count in counts.items() if count}


def told(counts):
    return (
        ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        or "nothing was recorded"
    )


def append(path, counts, seconds):
    """Adds a run to a file of a line for each."""
    line = {"versions": here(), "counts": counts, "seconds": round(seconds)}
    with Path(path).open("a") as file:
        file.write(json.dumps(line) + "\n")


def lines_of(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def show(path):
    """All runs on the same versions as one."""
    found = {}
    for line in lines_of(path):
        runs, counts = found.setdefault(in_words(line["versions"]), ([], {}))
        runs.append(line["seconds"])
        for outcome, count in line["counts"].items():
            counts[outcome] = counts.get(outcome, 0) + count
    for versions, (runs, counts) in found.items():
        print(f"{versions}: {told(counts)} in {sum(runs)} s")


def add(resolution, folder, *failed):
    """Replaces the row of this Python and these versions, and writes the page."""
    parts = {}
    for name in ("fast", "exact"):
        path = Path(folder) / f"{name}.jsonl"
        # A run that aborts leaves nothing.
        (parts[name],) = lines_of(path) if path.exists() else [{"counts": {}}]
    row = {
        "resolution": resolution,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": here(),
        "types": "failed" if "types" in failed else "passed",
        **{
            name: {key: part[key] for key in part if key != "versions"}
            for name, part in parts.items()
        },
    }
    rows = json.loads(RUNS.read_text()) if RUNS.exists() else []
    rows = sorted([row, *(old for old in rows if place(old) != place(row))], key=place)
    RUNS.write_text(json.dumps(rows, indent=1) + "\n")
    PAGE.write_text(page(rows))


def place(row):
    """Where a row stands: by its Python, then by its versions."""
    python = tuple(map(int, row["versions"]["python"].split(".")[:2]))
    return python, ENDS.index(row["resolution"])


def page(rows):
    """The page, in Markdown."""
    titles = ("Python, versions", ", ".join(PACKAGES), "fast; exact; types", "date")
    cells = [titles, ["---"] * len(titles)]
    for row in rows:
        versions = row["versions"]
        parts = [told(row[name]["counts"]) for name in ("fast", "exact")]
        cells.append(
            [
                f"{versions['python']}, {row['resolution']}",
                ", ".join(versions[name] for name in PACKAGES),
                "; ".join([*parts, row["types"]]),
                row["date"],
            ]
        )
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in cells)


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "page":
        PAGE.write_text(page(json.loads(RUNS.read_text())))
    else:
        {"show": show, "add": add}[command](*arguments)

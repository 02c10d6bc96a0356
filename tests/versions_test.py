"""What is said of runs on several versions."""

import json
import subprocess
import sys

import pytest
import versions


@pytest.fixture
def added(tmp_path, monkeypatch):
    """Adds runs of this environment to a page of their own, and returns it."""
    monkeypatch.setattr(versions, "RUNS", tmp_path / "versions.json")
    monkeypatch.setattr(versions, "PAGE", tmp_path / "versions.md")

    def add(resolution, *failed, **parts):
        folder = tmp_path / resolution
        folder.mkdir(exist_ok=True)
        for name, counts in parts.items():
            (folder / f"{name}.jsonl").unlink(missing_ok=True)
            versions.append(folder / f"{name}.jsonl", counts, 12.3)
        versions.add(resolution, folder, *failed)
        return versions.PAGE.read_text()

    return add


def test_a_row_is_replaced_by_the_next_run_of_its_kind(added):
    added("lowest", fast={"passed": 7}, exact={"passed": 3})
    added("highest", fast={"passed": 8}, exact={"passed": 4})
    page = added("lowest", fast={"passed": 9, "skipped": 1}, exact={"passed": 3})
    rows = [line for line in page.splitlines() if line.startswith("| 3.")]
    assert ["lowest" in row for row in rows] == [True, False]
    assert "| 9 passed, 1 skipped; 3 passed; passed |" in rows[0]
    assert "7 passed" not in page
    assert page == versions.page(json.loads(versions.RUNS.read_text()))


def test_what_failed_or_aborted_is_in_its_row(added):
    page = added("highest", "types", "exact", fast={"passed": 7, "failed": 2})
    assert "| 7 passed, 2 failed; nothing was recorded; failed |" in page


def test_runs_on_the_same_versions_are_shown_as_one(tmp_path, capsys):
    for counts in ({"passed": 7}, {"passed": 3, "failed": 1}):
        versions.append(tmp_path / "runs", counts, 10)
    versions.show(tmp_path / "runs")
    shown = capsys.readouterr().out
    assert shown == f"{versions.in_words(versions.here())}: 10 passed, 1 failed in 20 s\n"


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_run_is_recorded_once(tmp_path, workers):
    """On several workers, each of which has a summary of its own, too."""
    record = tmp_path / "runs.jsonl"
    test = "tests/versions_test.py::test_what_failed_or_aborted_is_in_its_row"
    options = f"--record={record}", "-n", workers, "-p", "no:cacheprovider"
    subprocess.run([sys.executable, "-m", "pytest", *options, test], check=True, timeout=300)
    (run,) = versions.lines_of(record)
    assert run["counts"] == {"passed": 1}

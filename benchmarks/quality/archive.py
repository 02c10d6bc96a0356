"""All trials in one compressed file, beside a summary with its checksum: what git has of a run.

A run works in a folder of single files, which git ignores. `report` packs them, `unpack` gets them
back. A mark in the folder says which archive it goes on from, so that what is packed never lacks
what somebody else has added to the archive in between.
"""

from collections.abc import Iterable
import hashlib
import io
import json
from pathlib import Path
import tarfile
from typing import Any

from benchmarks.measure import RESULTS
from benchmarks.quality import report, statistics
from benchmarks.quality.problem import Problem
from benchmarks.quality.record import Record, Store, written

SUMMARY = RESULTS / "quality.json"
TRIALS = RESULTS / "quality_trials.tar.xz"
MARK = "archive.sha256"


def resume(folder: Path) -> None:
    """Makes a folder one to go on in: unpacks the archive, unless that was done before.

    Raises:
        ValueError: the folder goes on from another archive than there is now.
    """
    mark = folder / MARK
    if not mark.exists():
        unpack(folder)
    elif mark.read_text() != _checksum():
        raise ValueError(
            f"{folder} goes on from another {TRIALS.name} than there is now, and would replace it: "
            "move the folder away, `python -m benchmarks.quality unpack`, and add what is new."
        )


def pack(folder: Path, problems: Iterable[Problem]) -> None:
    """Writes the archive of a folder's records, and the summary; the same for the same records."""
    compressed = io.BytesIO()
    with tarfile.open(fileobj=compressed, mode="w:xz", format=tarfile.USTAR_FORMAT) as archive:
        for path in sorted(folder.glob("*/*.json")):
            member = tarfile.TarInfo(path.relative_to(folder).as_posix())
            member.size = path.stat().st_size
            with path.open("rb") as content:
                archive.addfile(member, content)
    TRIALS.write_bytes(compressed.getvalue())
    described = {
        "trials": {"file": TRIALS.name, "sha256": _checksum()},
        **_measured_with(folder),
        "scores": {problem.name: _summary(problem, Store(folder)) for problem in problems},
    }
    SUMMARY.write_text(_in_lines(described))
    (folder / MARK).write_text(_checksum())


def unpack(folder: Path) -> None:
    """Writes the records of the archive into a folder.

    Raises:
        ValueError: the archive is not the one that the summary belongs to.
    """
    expected, found = json.loads(SUMMARY.read_text())["trials"]["sha256"], _checksum()
    if found != expected:
        raise ValueError(
            f"{TRIALS.name} must have the checksum {expected} of {SUMMARY.name}, got {found}: "
            "check both out from one commit."
        )
    with tarfile.open(TRIALS) as archive:
        archive.extractall(folder, filter="data")
    # Last: a folder that was left half unpacked has no mark, and is unpacked again.
    (folder / MARK).write_text(found)


def record(problem: str, method: str) -> Record:
    """One record of the archive, without unpacking it.

    Raises:
        ValueError: the archive has no such record.
    """
    with tarfile.open(TRIALS) as archive:
        try:
            content = archive.extractfile(f"{problem}/{method}.json")
        except KeyError:
            raise ValueError(f"the archive has no run of {method} on {problem}.") from None
        assert content is not None  # a file, no folder
        found: Record = json.load(content)
    return found


def names() -> list[str]:
    """The records of the archive, `problem/method.json`."""
    with tarfile.open(TRIALS) as archive:
        return archive.getnames()


def _in_lines(described: dict[str, Any]) -> str:
    """JSON with a line for each method: indentation would be a fifth of the file."""
    text = json.dumps(described, separators=(",", ":"), allow_nan=False)
    return text.replace('},"', '},\n"') + "\n"


def _checksum() -> str:
    return hashlib.sha256(TRIALS.read_bytes()).hexdigest()


def _measured_with(folder: Path) -> dict[str, list[Any]]:
    """The versions and the devices of all records, each once."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*/*.json"))]
    found: dict[str, list[Any]] = {"versions": [], "device": []}
    for name, seen in found.items():
        for record in records:
            if record[name] not in seen:
                seen.append(record[name])
    return found


def _summary(problem: Problem, store: Store) -> dict[str, Any]:
    """What came of each method, variants included; None stands for what is not finite."""
    summaries = {}
    for path in sorted((store.folder / problem.name).glob("*.json")):
        record = store.load(problem.name, path.stem)
        if len(record.get("scores", [])) > 1:
            found = statistics.summarize(report.scores(record), problem.success)
            summaries[path.stem] = {
                "seeds": len(record["scores"]),
                "median": written(found.median),
                "mean": written(found.mean),
                "deviation": written(found.deviation),
                **({} if found.solved is None else {"solved": found.solved}),
                "forwards": record["forwards"],
                "date": record["date"],
            }
    return summaries

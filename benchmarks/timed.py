"""The tables of what was timed: ratios of runs that take turns, from the results."""

from collections.abc import Iterable
from typing import Any

from benchmarks import measure
from benchmarks.cells import Table, beside, pivot, ratio, spread

USES = {
    "policy": "policy in Gymnax, 4 episodes of 200 steps",
    "exact_match": "exact match, {texts} texts of 9 characters",
}


def idle() -> Table:
    """Steps without a cycle; those decided in the graph also with freed memory kept."""
    rows = list(measure.load("idle")["rows"])
    for row in measure.load("idle_kept")["rows"]:
        rows.append({**row, "form": f"{row['form']}, freed memory kept"})
    forms = ("in graph", "in graph, freed memory kept", "evolve=False")
    body = pivot(rows, "{base}, {size} parameters, {samples} samples", "form", forms)
    return "A step without a cycle, over the base's", ["base", *forms], body


def idle_host() -> Table:
    """Steps without a cycle, of programs that call Python in a cycle, and of others."""
    forms = ("evolve=False", "in graph", "host function")
    rows = measure.load("idle_host")["rows"]
    body = pivot(rows, "{size} parameters, {samples} samples", "form", forms)
    title = "A step without a cycle of a small network, over the base's"
    return title, ["network", *forms], body


def cycle() -> Table:
    """Cycles over their floor."""
    rows = [row for row in measure.load("cycle_kept")["rows"] if row["case"] == "memory"]
    modes = ("host", "device", "replay")
    body = pivot(rows, "{size} parameters, population {population}", "memory", modes)
    return "A cycle, over its own forward passes and draws", ["cycle", *modes], body


def batches() -> Table:
    """Members evaluated at a time."""
    rows = [row for row in measure.load("cycle_kept")["rows"] if row["case"] == "batch"]
    header = ["parameters", "at a time", "time over one at a time", "memory over parameters"]
    body = [
        [
            row["size"],
            str(row["candidate_batch_size"]),
            ratio(row),
            f"{row['temp_over_params']:.1f}",
        ]
        for row in rows
    ]
    return "Members evaluated at a time, population 16", header, body


def noise() -> list[Table]:
    """Cycles over plain forward passes; a table for each way to keep elites."""
    rows = measure.load("noise_kept")["rows"]
    kinds = {kind: _words(kind) for kind in dict.fromkeys(row["noise"] for row in rows)}
    label = "{model}, {size} parameters, {samples} samples"
    return [
        (
            f'A cycle of population 8 with memory="{mode}", over its forward passes without noise',
            ["network", *kinds.values()],
            pivot([row for row in rows if row["memory"] == mode], label, "noise", kinds),
        )
        for mode in dict.fromkeys(row["memory"] for row in rows)
    ]


def draws() -> Table:
    """The generator of a cycle beside that of JAX."""
    header = ["draw", "time over jax.random", "CPU time over it"]
    header += ["memory over the numbers; seconds to compile"]
    body = [
        [
            f"{row['size']} numbers, {row['generator']}",
            ratio(row),
            ratio(row, "cpu_ratio"),
            beside(f"{row['temp_over_numbers']:.1f}", ratio(row, "compile_seconds")),
        ]
        for row in measure.load("draws_kept")["rows"]
    ]
    return "A draw of normal numbers", header, body


def factored() -> list[Table]:
    """Members that are never formed, and others, over plain forward passes."""
    return _factored(measure.load("factored_kept")["rows"], "cpu_ratio", "CPU time")


def factored_gpu() -> list[Table]:
    """The same on an accelerator."""
    record = measure.load("gpu")
    rows = [row for row in record["rows"] if row["case"] == "factored" and "way" in row]
    return _factored(rows, "ratio", f"time on an {record['device']['kind']}")


def _factored(rows: list[dict[str, Any]], what: str, name: str) -> list[Table]:
    """The ways that form members beside the one that does not, then the other ways."""
    ways = list(dict.fromkeys(row["way"] for row in rows))
    chunks = [way for way in ways if way.startswith("factored, ")]
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        label = f"{row['model']}, {row['on']}, population {row['population']}"
        found, way = cells.setdefault(label, {}), row["way"]
        found[way] = f"{row[what]['median']:.2f}" if way in chunks else ratio(row, what)
        if way == "auto":
            found[way] = beside(found[way], f"{row['temp_over_params']:.1f}")
    first = ["formed", "formed, all at once", "factored"]
    others = [way for way in ways if way not in ("forwards", "auto", *first, *chunks)]
    sizes = beside(*(way.split()[1] for way in chunks))
    kinds = {
        f"A cycle of low-rank noise, over as many plain forward passes, {name}": {
            way: [way] for way in first
        },
        f"Other ways, over as many plain forward passes, {name}": {
            '"auto"; its memory': ["auto"],
            **{way: [way] for way in others},
            **({f"factored, {sizes} at once": chunks} if chunks else {}),
        },
    }
    return [
        (
            title,
            ["network", *columns],
            [
                [label, *(beside(*map(found.get, shown)) for shown in columns.values())]
                for label, found in cells.items()
            ],
        )
        for title, columns in kinds.items()
    ]


def uses() -> Table:
    """Generations a second, of two programs of the examples."""
    header = ["use", "population", "members", "generations a second"]
    body = [
        [
            use.format(**row),
            str(row["population"]),
            row["way"],
            _a_second(row["seconds"]),
        ]
        for name, use in USES.items()
        for row in measure.load(name)["rows"]
        if row["case"] == "generations"
    ]
    return "Two uses, in wall time", header, body


def _a_second(seconds: dict[str, float]) -> str:
    return spread(*(1 / seconds[name] for name in ("median", "high", "low")), digits=1)


def gpu() -> Table:
    """What only an accelerator can tell: peak memory."""
    record = measure.load("gpu")
    body = [
        [row["memory"], str(row["population"]), f"{row['peak_over_params']:.2f}"]
        for row in record["rows"]
        if row["case"] == "peak" and row.get("peak_over_params")
    ]
    title = f"Peak memory of a cycle of 100M parameters on an {record['device']['kind']}"
    return title, ["elites", "population", "over the parameters"], body


def side_by_side() -> list[Table]:
    """A generation, beside what one would pick otherwise; a table for each size."""
    rows = measure.load("side_by_side")["rows"]
    header = ["method", "forwards", "time", "peak memory"]
    return [
        (
            f"A generation, {size} parameters, population {population}: time over ours and peak "
            "memory over the parameters",
            header,
            [
                _beside_ours(row)
                for row in rows
                if (row["size"], row["population"]) == (size, population)
            ],
        )
        for size, population in _each(rows, "size", "population")
    ]


def _beside_ours(row: dict[str, Any]) -> list[str]:
    if "ratio" not in row:
        return [row["method"], row["not_run"], "", ""]
    peak = row["peak_over_params"]
    memory = "not measured" if peak is None else f"{peak:.1f}"
    return [_words(row["method"]), str(row["forwards"]), ratio(row), memory]


def division() -> Table:
    """A divided population, over the same on one device."""
    header = ["population", "noise", "CPU time", "wall time on shared cores"]
    body = [
        [str(row["population"]), _words(row["noise"]), ratio(row, "cpu_ratio"), ratio(row)]
        for row in measure.load("division")["rows"]
    ]
    return "A cycle on eight simulated devices, over that on one", header, body


def _words(name: str) -> str:
    """The name of a noise, in words."""
    return name.replace("_rank", " rank")


def _each(rows: Iterable[dict[str, Any]], *keys: str) -> list[tuple[Any, ...]]:
    """What some fields of rows hold together, each once."""
    return list(dict.fromkeys(tuple(row[key] for key in keys) for row in rows))

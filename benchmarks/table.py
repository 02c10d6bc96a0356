"""The tables of the documentation, from the results: `python -m benchmarks.table` rewrites them."""

from collections.abc import Iterator
from pathlib import Path
import re
from typing import Any

from rich.table import Table

from benchmarks import measure, tested
from benchmarks.bbob import report as bbob
from benchmarks.g2p import report as g2p
from benchmarks.quality import names

ROOT = Path(__file__).parents[1]
Rows = list[list[str]]


def tables() -> Iterator[tuple[str, list[str], Rows]]:
    """Title, header and rows of every table."""
    for make in (
        idle,
        idle_host,
        cycle,
        noise,
        draws,
        factored,
        factored_gpu,
        gpu,
        compilation,
        leaves,
        batches,
        memory,
        aot,
        side_by_side,
        division,
    ):
        yield make()


def documents() -> dict[Path, dict[str, list[tuple[str, list[str], Rows]]]]:
    """The files that hold tables, by the name of their marks."""
    return {
        ROOT / "docs/results/costs.md": {
            "costs": [idle(), idle_host(), cycle(), noise()],
            "inference": [inference()],
        },
        ROOT / "docs/compatibility/tested_on.md": {"tested": [tested.tested_on()]},
        ROOT / "docs/results/deciding.md": {"diagnosis": [diagnosis()]},
        ROOT / "docs/results/bbob.md": {"bbob": bbob.tables()},
        ROOT / "docs/results/g2p.md": {"g2p": g2p.tables()},
        ROOT / "docs/results/factored.md": {"costs": [factored(), factored_gpu()]},
        ROOT / "benchmarks" / "README.md": {
            "costs": list(tables()),
            "pod_plan": [pod_received(), pod_held()],
        },
    }


def diagnosis() -> tuple[str, list[str], Rows]:
    """What runs of the base say of cycles, and who wins."""
    rows = measure.load("diagnosis")["rows"]

    def said(row: dict[str, Any], name: str) -> str:
        found = [at[name] for at in row["at"]]
        return ", ".join("none" if one is None else f"{one['median']:.2f}" for one in found)

    body = [
        [
            f"{names.problem(row['problem'])}, {names.method(row['preset'])}",
            said(row, "gradient_correlation"),
            said(row, "reliability"),
            f"{row['base_median']:.3g}; {row['preset_median']:.3g}",
            f"{row['better']} / {row['same']} / {row['worse']}",
        ]
        for row in rows
    ]
    header = ["problem, preset", "gradient_correlation", "reliability", "base; preset end at"]
    header += ["better / same / worse"]
    return "Correlations at 10, 50 and 90 % of a run, and scores", header, body


def idle() -> tuple[str, list[str], Rows]:
    """Steps without a cycle; those decided in the graph also with freed memory kept."""
    rows = list(measure.load("idle")["rows"])
    for row in measure.load("idle_kept")["rows"]:
        rows.append({**row, "form": f"{row['form']}, freed memory kept"})
    keys = ("base", "size", "samples")
    forms = ("in graph", "in graph, freed memory kept", "evolve=False")
    header = ["base", "parameters", "samples", *forms]
    return "A step without a cycle, over the base's", header, _pivot(rows, keys, "form", forms)


def idle_host() -> tuple[str, list[str], Rows]:
    """Steps without a cycle, of programs that call Python in a cycle, and of others."""
    forms = ("evolve=False", "in graph", "host function")
    rows = measure.load("idle_host")["rows"]
    title = "A step without a cycle of a small network, over the base's"
    return title, ["parameters", *forms], _pivot(rows, ("size",), "form", forms)


def cycle() -> tuple[str, list[str], Rows]:
    """Cycles over their floor."""
    rows = [row for row in measure.load("cycle_kept")["rows"] if row["case"] == "memory"]
    modes = ("host", "device", "replay")
    header = ["parameters", "population", *modes]
    title = "A cycle, over its own forward passes and draws"
    return title, header, _pivot(rows, ("size", "population"), "memory", modes)


def noise() -> tuple[str, list[str], Rows]:
    """Cycles over plain forward passes."""
    rows = [
        {**row, "kind": f"{row['noise']}, {row['memory']}"}
        for row in measure.load("noise_kept")["rows"]
    ]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    header = ["network", "parameters", "samples", *kinds]
    title = "A cycle of population 8, over its forward passes without noise"
    return title, header, _pivot(rows, ("model", "size", "samples"), "kind", kinds)


def factored() -> tuple[str, list[str], Rows]:
    """Members that are never formed, and others, over plain forward passes."""
    return _factored(measure.load("factored_kept")["rows"], "cpu_ratio", "CPU time")


def factored_gpu() -> tuple[str, list[str], Rows]:
    """The same on an accelerator."""
    record = measure.load("gpu")
    rows = [row for row in record["rows"] if row["case"] == "factored" and "way" in row]
    return _factored(rows, "ratio", f"time on an {record['device']['kind']}")


def _factored(rows: list[dict[str, Any]], what: str, name: str) -> tuple[str, list[str], Rows]:
    chunks = [way for way in dict.fromkeys(row["way"] for row in rows) if _chunked(way)]
    ways = [way for way in dict.fromkeys(row["way"] for row in rows) if not _chunked(way)]
    ways.remove("forwards")
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        found = cells.setdefault(f"{row['model']}, {row['on']}, {row['population']}", {})
        found[row["way"]] = _ratio(row, what)
        if _chunked(row["way"]):
            found[row["way"]] = f"{row[what]['median']:.2f}"
        if row["way"] == "auto":
            found["memory"] = f"{row['temp_over_params']:.1f}"
    header = ["network, of a member, population", *ways]
    if chunks:
        sizes = "; ".join(way.split()[1] for way in chunks)
        header.append(f"factored, {sizes} at once")
    body = []
    for label, found in cells.items():
        row = [label, *(found.get(way, "") for way in ways)]
        if chunks:
            row.append("; ".join(found[way] for way in chunks if way in found))
        body.append([*row, found["memory"]])
    header.append('memory of "auto"')
    return f"A cycle of low-rank noise, over as many plain forward passes, {name}", header, body


def _chunked(way: str) -> bool:
    """Whether so many factored members are evaluated at a time."""
    return way.startswith("factored, ")


def gpu() -> tuple[str, list[str], Rows]:
    """What only an accelerator can tell: peak memory."""
    record = measure.load("gpu")
    body = [
        [row["memory"], str(row["population"]), f"{row['peak_over_params']:.2f}"]
        for row in record["rows"]
        if row["case"] == "peak" and row.get("peak_over_params")
    ]
    title = f"Peak memory of a cycle of 100M parameters on an {record['device']['kind']}"
    return title, ["elites", "population", "over the parameters"], body


def draws() -> tuple[str, list[str], Rows]:
    """The generator of a cycle beside that of JAX."""
    rows = measure.load("draws_kept")["rows"]
    header = ["numbers", "generator", "time over jax.random", "CPU time", "memory over numbers"]
    header += ["seconds to compile"]
    body = [
        [
            row["size"],
            row["generator"],
            _ratio(row),
            _ratio(row, "cpu_ratio"),
            f"{row['temp_over_numbers']:.1f}",
            _ratio(row, "compile_seconds"),
        ]
        for row in rows
    ]
    return "A draw of normal numbers", header, body


def compilation() -> tuple[str, list[str], Rows]:
    """Train steps with a cycle, traced and compiled, over those of the base alone."""
    header = ["network", "leaves", "setting", "program", "trace", "compile", "seconds", "base's"]
    body = [
        [
            *(str(row[key]) for key in ("model", "leaves", "setting", "program")),
            _ratio(row, "trace"),
            _ratio(row, "compile"),
            f"{row['seconds']:.2f}",
            f"{row['base_seconds']:.2f}",
        ]
        for row in measure.load("compile")["rows"]
    ]
    return (
        "A train step with a cycle, CPU time to trace and to compile it over the base's",
        header,
        body,
    )


def leaves() -> tuple[str, list[str], Rows]:
    """Train steps of many leaves, and what one more costs to compile."""
    rows = measure.load("leaves")["rows"]
    body = []
    for row in rows:
        fewer = next((one for one in rows if _more_leaves(one, row)), None)
        growth = ["", ""]
        if fewer is not None:
            more = row["leaves"] - fewer["leaves"]
            growth = [
                f"{1000 * (row[name] - fewer[name]) / more:.1f}"
                for name in ("seconds", "base_seconds")
            ]
        cells = row["tree"], row["setting"], str(row["leaves"]), _ratio(row, "over_base")
        body.append([*cells, f"{row['seconds']:.1f}", f"{row['base_seconds']:.1f}", *growth])
    header = ["leaves of", "setting", "how many", "over the base", "seconds", "base's"]
    header += ["ms a leaf more", "base's"]
    return "A train step of many leaves, CPU time to trace and compile", header, body


def _more_leaves(fewer: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether a row is of the same tree and setting as another one with more leaves."""
    same = all(fewer[name] == row[name] for name in ("tree", "setting"))
    return same and fewer["leaves"] < row["leaves"]


def inference() -> tuple[str, list[str], Rows]:
    """What a strategy without gradients holds, beside a forward pass."""
    rows = measure.load("inference")["rows"]
    body = []
    for row in rows:
        cells = [row["target"], str(row["chips"]), row["method"]]
        if "held" in row:
            cells += [_gigabytes(row["held"]), f"{row['over_params']:.2f}"]
            cells += ["yes" if row["fits"] else "no"]
        else:
            cells += ["", "", "no"]
        body.append(cells)
    header = ["chip", "chips", "program", "held by a chip", "over its parameters", "fits"]
    return "A transformer of 7B parameters in bfloat16", header, body


def batches() -> tuple[str, list[str], Rows]:
    """Members evaluated at a time."""
    rows = [row for row in measure.load("cycle_kept")["rows"] if row["case"] == "batch"]
    header = ["parameters", "at a time", "time over one at a time", "memory over parameters"]
    body = [
        [
            row["size"],
            str(row["candidate_batch_size"]),
            _ratio(row),
            f"{row['temp_over_params']:.1f}",
        ]
        for row in rows
    ]
    return "Members evaluated at a time, population 16", header, body


def memory() -> tuple[str, list[str], Rows]:
    """Temporary memory of train steps."""
    rows = [row for row in measure.load("memory")["rows"] if "population" in row]
    populations = sorted({row["population"] for row in rows})
    names = sorted({(row["method"], _share(row)) for row in rows})
    body = []
    for method, share in names:
        found = {
            row["population"]: f"{row['temp_over_params']:.1f}"
            for row in rows
            if (row["method"], _share(row)) == (method, share)
        }
        label = f"{method}, {share}" if share else method
        body.append([label, *(found.get(population, "") for population in populations)])
    header = ["method", *(f"population {population}" for population in populations)]
    return "Temporary memory of a train step with a cycle, over the parameters", header, body


def aot() -> tuple[str, list[str], Rows]:
    """Steps compiled for accelerators."""
    rows = measure.load("aot")["rows"]
    header = ["for", "chips", "memory", "population", "elites", "device memory", "plain"]
    header += ["memory_analysis", "host memory", "to host, a page each", "to device"]
    body = [
        [
            *(str(row[key]) for key in ("target", "chips", "memory", "population", "elites")),
            f"{row['device_over_params']:.2f}",
            f"{row['device_over_params_evolve_false']:.2f}",
            f"{row['analysed_over_params']:.2f}",
            f"{row['host_over_params']:.1f}",
            *(f"{row[key]:.0f}" for key in ("to_host", "to_device")),
        ]
        for row in rows
    ]
    title = (
        "A train step compiled for an accelerator: temporary memory, that of the step without a "
        "cycle, and copies between host and device, over the parameters"
    )
    return title, header, body


def side_by_side() -> tuple[str, list[str], Rows]:
    """A generation, beside what one would pick otherwise."""
    rows = measure.load("side_by_side")["rows"]
    header = ["parameters", "population", "method", "forwards", "time", "peak memory"]
    body = [
        [
            row["size"],
            str(row["population"]),
            row["method"],
            str(row["forwards"]),
            _ratio(row),
            _memory(row["peak_over_params"]),
        ]
        if "ratio" in row
        else [row["size"], str(row["population"]), row["method"], row["not_run"], "", ""]
        for row in rows
    ]
    return "One generation, time over ours and peak memory over the parameters", header, body


def division() -> tuple[str, list[str], Rows]:
    """A divided population, over the same on one device."""
    rows = measure.load("division")["rows"]
    header = ["population", "noise", "CPU time", "wall time on shared cores"]
    body = [
        [str(row["population"]), row["noise"], _ratio(row, "cpu_ratio"), _ratio(row)]
        for row in rows
    ]
    return "A cycle on eight simulated devices, over that on one", header, body


def pod_received() -> tuple[str, list[str], Rows]:
    """What a cycle sends between the chips of a pod."""
    header = ["parameters, chips, pop x fsdp, memory", "forwards", "bytes of a forward"]
    header += ["received; formula; ratio", "its own; formula; ratio"]
    body = [
        [
            _layout(row),
            str(row["forwards"]),
            _gigabytes(row["forward_received"]),
            _beside(row.get("received"), row["formula_received"]),
            _beside(row.get("own_received"), row["formula_own_received"]),
        ]
        for row in measure.load("pod_plan")["rows"]
    ]
    return "Bytes that a chip of a pod receives in a cycle", header, body


def pod_held() -> tuple[str, list[str], Rows]:
    """What a chip of a pod holds."""
    header = ["parameters, chips, pop x fsdp, memory", "held on an idle step"]
    header += ["held; formula; ratio", "on the host"]
    body = [
        [
            _layout(row),
            _gigabytes(row["idle_held"]),
            _beside(row.get("held"), row["formula_held"]),
            _gigabytes(row["on_host"]) if "on_host" in row else "",
        ]
        for row in measure.load("pod_plan")["rows"]
    ]
    return "Bytes that a chip of a pod holds", header, body


def _layout(row: dict[str, Any]) -> str:
    grid = f"{row['pop']} x {row['chips'] // row['pop']}"
    return f"{row['parameters'] / 1e9:.2f}B, {row['chips']}, {grid}, {row['memory']}"


def pretty(title: str, header: list[str], rows: Rows) -> Table:
    """A table for the terminal."""
    shown = Table(title=title)
    for name in header:
        shown.add_column(name)
    for row in rows:
        shown.add_row(*(re.sub(r"<[^>]+>|\*\*", "", cell) for cell in row))
    return shown


def rewritten(document: str, shown: dict[str, list[tuple[str, list[str], Rows]]]) -> str:
    """A document with the tables of today's results."""
    for name, found in shown.items():
        text = "\n".join(f"{title}:\n\n{markdown(header, rows)}" for title, header, rows in found)
        start = f"<!-- {name}: made by `python -m benchmarks.table` -->\n"
        document = replaced(document, start, f"<!-- /{name} -->\n", text)
    return document


def markdown(header: list[str], rows: Rows) -> str:
    """A table for a README."""
    ruled = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(row) + " |\n" for row in ruled)


def replaced(document: str, start: str, end: str, text: str) -> str:
    """A document with another text between two marks."""
    before, rest = document.split(start)
    _, after = rest.split(end)
    return f"{before}{start}\n{text}\n{end}{after}"


def _pivot(rows: list[dict[str, Any]], keys: Any, across: str, columns: Any) -> Rows:
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        label = tuple(str(row[key]) for key in keys)
        cells.setdefault(label, {})[row[across]] = _ratio(row)
    return [[*label, *(found[column] for column in columns)] for label, found in cells.items()]


def _ratio(row: dict[str, Any], name: str = "ratio") -> str:
    ratio = row[name]
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def _beside(found: float | None, formula: float) -> str:
    """What was found, what the formula says, and their ratio if the formula is not zero."""
    if found is None:
        return f"does not fit; {_gigabytes(formula)}"
    ratio = f"; {found / formula:.2f}" if formula else ""
    return f"{_gigabytes(found)}; {_gigabytes(formula)}{ratio}"


def _gigabytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB" if 0 < size < 1e8 else f"{size / 1e9:.2f} GB"


def _memory(ratio: float | None) -> str:
    return "not measured" if ratio is None else f"{ratio:.1f}"


def _share(row: dict[str, Any]) -> str:
    if row["elites"] <= 1:
        return "k = 1" if row["elites"] else ""
    return "k = P / 2" if 2 * row["elites"] == row["population"] else "k = P / 4"


if __name__ == "__main__":
    for path, shown in documents().items():
        path.write_text(rewritten(path.read_text(), shown))

"""The tables of what was compiled and read: its time, its memory, and what it moves."""

from collections.abc import Iterator
from typing import Any

from benchmarks import measure
from benchmarks.cells import Table, beside, beside_formula, gigabytes, ratio

# A compiled train step, as it stands in the tables.
PROGRAMS = {"step": "", "scan": ", in a scan", "vmap": ", under vmap"}


def compilation() -> Iterator[Table]:
    """Train steps with a cycle, traced and compiled, over those of the base; a table a network."""
    rows = measure.load("compile")["rows"]
    header = ["setting", "time to trace", "time to compile", "seconds; of the base"]
    for model, leaves in dict.fromkeys((row["model"], row["leaves"]) for row in rows):
        body = [
            [
                row["setting"] + PROGRAMS[row["program"]],
                ratio(row, "trace"),
                ratio(row, "compile"),
                beside(f"{row['seconds']:.2f}", f"{row['base_seconds']:.2f}"),
            ]
            for row in rows
            if (row["model"], row["leaves"]) == (model, leaves)
        ]
        title = f"A train step with a cycle, CPU time over the base's: {model} ({leaves} leaves)"
        yield title, header, body


def leaves() -> Table:
    """Train steps of many leaves, and what one more costs to compile."""
    rows = measure.load("leaves")["rows"]
    seconds = ("seconds", "base_seconds")
    body = []
    for row in rows:
        fewer = next((one for one in rows if _more_leaves(one, row)), None)
        growth = []
        if fewer is not None:
            more = row["leaves"] - fewer["leaves"]
            growth = [f"{1000 * (row[name] - fewer[name]) / more:.1f}" for name in seconds]
        body.append(
            [
                f"{row['leaves']} leaves, {row['tree']}, {row['setting']}",
                ratio(row, "over_base"),
                beside(*(f"{row[name]:.1f}" for name in seconds)),
                beside(*growth),
            ]
        )
    header = ["train step", "over the base", "seconds; of the base"]
    header += ["milliseconds a leaf more; of the base"]
    return "A train step of many leaves, CPU time to trace and compile", header, body


def _more_leaves(fewer: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether a row is of the same tree and setting as another one with more leaves."""
    same = all(fewer[name] == row[name] for name in ("tree", "setting"))
    return same and fewer["leaves"] < row["leaves"]


def above_inference() -> Table:
    """What a strategy without gradients holds above a forward pass, by program and chips."""
    held: dict[str, dict[tuple[str, int | None], float]] = {}
    for row in measure.load("inference")["rows"]:
        if "over_params" in row:
            case = row["method"], row.get("population")
            held.setdefault(_chips(row), {})[case] = row["over_params"]
    alone = {chips: found.pop(("inference", None)) for chips, found in held.items()}
    shown = [chips for chips, found in held.items() if found]
    cases = dict.fromkeys(case for chips in shown for case in held[chips])
    body = [
        [
            f"{method}, {population} members",
            *(f"{held[chips][method, population] - alone[chips]:.2f}" for chips in shown),
        ]
        for method, population in cases
    ]
    return "Copies of the parameters above a forward pass", ["program", *shown], body


def inference() -> Table:
    """What a strategy without gradients holds, beside a forward pass."""
    header = ["chips", "program", "held by a chip", "over its parameters"]
    body = []
    for row in measure.load("inference")["rows"]:
        cells = ["does not fit", ""]
        if "held" in row:
            held = gigabytes(row["held"])
            cells = [held if row["fits"] else f"{held}, does not fit", f"{row['over_params']:.2f}"]
        members = f", {row['population']} members" if "population" in row else ""
        body.append([_chips(row), row["method"] + members, *cells])
    return "A transformer of 7B parameters in bfloat16", header, body


def _chips(row: dict[str, Any]) -> str:
    return f"{row['target']} x {row['chips']}"


def memory() -> Table:
    """Temporary memory of train steps."""
    rows = [row for row in measure.load("memory")["rows"] if "population" in row]
    populations = sorted({row["population"] for row in rows})
    body = []
    for method, share in sorted({(row["method"], _share(row)) for row in rows}):
        found = {
            row["population"]: f"{row['temp_over_params']:.1f}"
            for row in rows
            if (row["method"], _share(row)) == (method, share)
        }
        cells = [found.get(population, "") for population in populations]
        body.append([f"{method}{share}", *(beside(*pair) for pair in _pairs(cells))])
    header = [f"population {beside(*pair)}" for pair in _pairs(list(map(str, populations)))]
    title = "Temporary memory of a train step with a cycle, over the parameters"
    return title, ["method", *header], body


def _pairs(cells: list[str]) -> list[list[str]]:
    """Two neighbours each."""
    return [cells[at : at + 2] for at in range(0, len(cells), 2)]


def _share(row: dict[str, Any]) -> str:
    if row["elites"] <= 1:
        return ", one elite" if row["elites"] else ""
    half = 2 * row["elites"] == row["population"]
    return ", elites are half" if half else ", elites are a quarter"


def aot() -> Table:
    """Steps compiled for accelerators."""
    header = ["program", "device memory; of a step without a cycle", "memory_analysis"]
    header += ["host memory; to host, a page each; to device"]
    body = [
        [
            f"{_chips(row)}, {row['memory']}, population {row['population']}, "
            f"{row['elites']} elites",
            beside(
                *(
                    f"{row[key]:.2f}"
                    for key in ("device_over_params", "device_over_params_evolve_false")
                )
            ),
            f"{row['analysed_over_params']:.2f}",
            beside(
                f"{row['host_over_params']:.1f}",
                *(f"{row[key]:.0f}" for key in ("to_host", "to_device")),
            ),
        ]
        for row in measure.load("aot")["rows"]
    ]
    title = (
        "A train step compiled for an accelerator: temporary memory, and copies between host and "
        "device, over the parameters"
    )
    return title, header, body


def pod_received() -> Table:
    """What a cycle sends between the chips of a pod."""
    header = ["parameters, chips (pop x fsdp), memory", "forwards; bytes of each"]
    header += ["received; formula; ratio", "its own; formula; ratio"]
    body = [
        [
            _layout(row),
            beside(str(row["forwards"]), gigabytes(row["forward_received"])),
            beside_formula(row.get("received"), row["formula_received"]),
            beside_formula(row.get("own_received"), row["formula_own_received"]),
        ]
        for row in measure.load("pod_plan")["rows"]
    ]
    return "Bytes that a chip of a pod receives in a cycle", header, body


def pod_held() -> Table:
    """What a chip of a pod holds."""
    header = ["parameters, chips (pop x fsdp), memory", "held on an idle step"]
    header += ["held; formula; ratio", "on the host"]
    body = [
        [
            _layout(row),
            gigabytes(row["idle_held"]),
            beside_formula(row.get("held"), row["formula_held"]),
            gigabytes(row["on_host"]) if "on_host" in row else "",
        ]
        for row in measure.load("pod_plan")["rows"]
    ]
    return "Bytes that a chip of a pod holds", header, body


def _layout(row: dict[str, Any]) -> str:
    grid = f"{row['pop']} x {row['chips'] // row['pop']}"
    return f"{row['parameters'] / 1e9:.2f}B, {row['chips']} ({grid}), {row['memory']}"

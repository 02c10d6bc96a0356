"""What ran on which device, from the results: a table of the documentation."""

from benchmarks import measure

WHAT = {
    "gpu": "cycles, factored members, peak memory",
    "pod_cpu": "training in four layouts of the devices",
    "division": "members divided over devices",
    "idle": "steps without a cycle",
    "quality": "19 problems and 4 policies, 30 seeds each",
    "aot": "paging of elites, factored members",
    "inference": "strategies without gradients, 7B parameters",
    "pod_plan": "training on a pod, 1B to 70B parameters",
}
HEADER = ["what", "on", "how", "jax"]


def tested_on() -> tuple[str, list[str], list[list[str]]]:
    """Title, header and a row for each of the results."""
    return "Devices of the measurements", HEADER, [_row(name, what) for name, what in WHAT.items()]


def _row(name: str, what: str) -> list[str]:
    record = measure.load(name)
    jax = {about["jax"] for about in _each(record["versions"])}
    if name in ("aot", "inference", "pod_plan"):
        return [what, _targets(name, record), "compiled for it, not run", ", ".join(sorted(jax))]
    devices = {device["kind"]: device["count"] for device in _each(record["device"])}
    (kind, count), *_ = devices.items()
    words = "a CPU" if kind == "cpu" else f"an {kind}"
    if kind == "cpu" and count > 1:
        words = f"{count} simulated devices on a CPU"
    return [what, words, "run", ", ".join(sorted(jax))]


def _each(about: dict[str, str] | list[dict[str, str]]) -> list[dict[str, str]]:
    return about if isinstance(about, list) else [about]


def _targets(name: str, record: dict) -> str:
    if name == "pod_plan":
        chips = sorted({row["chips"] for row in record["rows"]})
        return f"TPU v5p, {', '.join(map(str, chips))} chips"
    found = sorted({(row["target"], row["chips"]) for row in record["rows"]})
    return ", ".join(f"{target} x {chips}" for target, chips in found)

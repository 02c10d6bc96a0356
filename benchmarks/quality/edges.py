"""Where tuning goes on: the best of a grid says nothing of what lies beyond its edge."""

from collections.abc import Sequence

from benchmarks.quality.methods.method import Settings

# What a number of something cannot go below, other than 1, or above: a population has pairs, and
# of four quarters of a run one is left.
LEAST, MOST = {"population": 2}, {"quarters": 3}


def beyond(best: Settings, tried: Sequence[Settings]) -> Settings | None:
    """The best settings with one of them moved beyond what was tried, by a factor of two.

    Args:
        best: of all that were tried.
        tried: all settings that were tried, with the same names.

    Returns:
        Settings with half of the first that is the lowest that was tried, or twice the first that
        is the highest; None where no setting is at an edge, or only where it cannot go on.
    """
    for name, value in best.items():
        others = [settings[name] for settings in tried]
        # What is not drawn has no edge, and names and switches are in no order.
        if isinstance(value, bool | str) or len(set(others)) == 1:
            continue
        for times, edge in ((0.5, min), (2.0, max)):
            moved = scaled(name, value, times)
            if value == edge(others) and moved != value:
                return {**best, name: moved}
    return None


def scaled(name: str, value: float, times: float) -> float:
    """A setting times a factor, of the same type and within its limits."""
    if name == "gamma":
        # A discount looks ahead by 1 / (1 - gamma) steps, and it is these that are scaled.
        return 1 - (1 - value) / times
    if isinstance(value, float):
        return value * times
    found = int(value * times)
    return max(min(found, MOST.get(name, found)), LEAST.get(name, 1))

"""Eight CPU devices for every test, set before jax starts its backend."""

import collections
import os
import time

os.environ["JAX_PLATFORMS"] = "cpu"

import hypothesis
import pytest
import versions

from egd_optax.backend import memory
from xla_options import simulate_devices

simulate_devices(8)
START = time.monotonic()

# Compilation makes the first example slow; the property is what is tested, not time.
hypothesis.settings.register_profile("default", deadline=None, max_examples=40, derandomize=True)
hypothesis.settings.load_profile("default")


def pytest_addoption(parser):
    parser.addoption("--record", metavar="FILE", help="a line of what ran, on which versions")


def pytest_report_header():
    return versions.in_words(versions.here())


def pytest_terminal_summary(terminalreporter, config):
    # The workers of xdist have a summary each, of what is in that of all.
    if (path := config.getoption("record")) and not hasattr(config, "workerinput"):
        counts = versions.counted(terminalreporter.stats)
        versions.append(path, counts, time.monotonic() - START)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks what docstrings show as exact, and most cases of `crossed` tests as wide.

    A user gets what they show, to the digits that they print.
    """
    crossed = collections.defaultdict(list)
    for item in items:
        if isinstance(item, pytest.DoctestItem):
            item.add_marker(pytest.mark.exact)
        elif item.get_closest_marker("crossed"):
            crossed[item.nodeid.split("[")[0]].append(item)
    for cases in crossed.values():
        (count,) = cases[0].get_closest_marker("crossed").args
        # One from the middle of each of so many equal parts.
        few = {int((part + 0.5) * len(cases) / count) for part in range(count)}
        for at, item in enumerate(cases):
            if at not in few:
                item.add_marker(pytest.mark.wide)


@pytest.fixture(autouse=True)
def paged_as_on_an_accelerator(request, monkeypatch):
    """Lets "host" transfer elites as on an accelerator; CPU needs no transfer.

    The program then holds the transfers and the types of host memory; a test marked
    `on_cpu` sees what a CPU user gets.
    """
    if "on_cpu" not in request.keywords:
        monkeypatch.setattr(memory, "pages_to_host", lambda: True)

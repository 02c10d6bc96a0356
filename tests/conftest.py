"""Eight CPU devices for every test, set before jax starts its backend."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import hypothesis
import pytest

from egd_optax._cycle import storage

# Compilation makes the first example slow; the property is what is tested, not time.
hypothesis.settings.register_profile("default", deadline=None, max_examples=40, derandomize=True)
hypothesis.settings.load_profile("default")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What documentation shows is what a user gets, to the digits that it prints."""
    for item in items:
        if isinstance(item, pytest.DoctestItem):
            item.add_marker(pytest.mark.exact)


@pytest.fixture(autouse=True)
def paged_as_on_an_accelerator(request, monkeypatch):
    """Lets "host" transfer elites as on an accelerator; CPU needs no transfer.

    The program then holds the transfers and the types of host memory; a test marked
    `on_cpu` sees what a CPU user gets.
    """
    if "on_cpu" not in request.keywords:
        monkeypatch.setattr(storage, "pages_to_host", lambda: True)

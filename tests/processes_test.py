"""Two real processes train one model; they are killed, and two others go on."""

import json
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
import time

from layouts import Layout, train
import numpy as np
import pytest

pytestmark = pytest.mark.long

WORKER = Path(__file__).with_name("process_worker.py")
PATIENCE = 240


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def launch(folder, task):
    port, children = str(free_port()), []
    # A script finds what is beside it, not what its tests have in the folder above.
    env = {**os.environ, "PYTHONPATH": str(WORKER.parents[1])}
    for process in range(2):
        with (folder / f"{task}-{process}.log").open("w") as log:
            command = [sys.executable, str(WORKER), port, str(process), str(folder), task]
            children.append(
                subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)
            )
    return children


def wait_for(children, files):
    end = time.monotonic() + PATIENCE
    while not all(file.exists() for file in files):
        failed = [child for child in children if child.poll() not in (None, 0)]
        logs = [log.read_text() for log in files[0].parent.glob("*.log")]
        assert not failed, "\n".join(logs)
        assert time.monotonic() < end, "\n".join(logs)
        time.sleep(0.1)


def reap(children):
    for child in children:
        child.kill()
        child.wait()


def reports(folder, name):
    return [json.loads((folder / f"{name}-{process}.json").read_text()) for process in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the processes left behind: those that were killed, then those that went on."""
    folder = tmp_path_factory.mktemp("processes")
    for task, last in (("train", "uninterrupted"), ("resume", "resumed")):
        children = launch(folder, task)
        try:
            wait_for(children, [folder / f"{last}-{process}.json" for process in range(2)])
        finally:
            reap(children)
        if task == "train":
            assert {child.returncode for child in children} == {-signal.SIGKILL}
    return folder


@pytest.fixture(scope="module")
def expected():
    params, state = train(Layout({"data": 1}))
    assert int(state.cycle) == 2
    return params


@pytest.mark.parametrize("layout", ["data", "population", "sharded"])
def test_processes_agree_with_each_other_and_with_one_process(folder, layout, expected):
    one, other = reports(folder, layout)
    assert one["hash"] == other["hash"]
    for name, leaf in expected.items():
        np.testing.assert_allclose(one["params"][name], leaf, atol=2e-5)


def test_a_killed_run_resumes_from_its_checkpoint(folder):
    uninterrupted, resumed = reports(folder, "uninterrupted"), reports(folder, "resumed")
    assert len({report["hash"] for report in uninterrupted + resumed}) == 1


@pytest.mark.parametrize("layout", ["data", "pop", "pop-fsdp"])
def test_a_simulator_is_called_once_and_all_processes_are_told(folder, layout):
    one, other = reports(folder, f"noisy-{layout}")
    assert one["calls"] + other["calls"] == one["due"] == other["due"] > 0
    assert one["shapes"] == [[16, 8]]  # all of the batch, wherever it was
    assert one["fitness"] == other["fitness"]
    assert one["hash"] == other["hash"]

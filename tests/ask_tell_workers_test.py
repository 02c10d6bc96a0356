"""Members are made and scored in other processes, which are killed, or know tickets alone."""

from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
import http.server
import json
import math
import multiprocessing
import os
from pathlib import Path
import pickle
import threading
import urllib.request

import ask_tell_worker
from ask_tell_worker import finished, load, score, scored, toy_params
import chex
import jax
import numpy as np
import pytest

from egd_optax import ask_tell, egd
from egd_optax.ask_tell import ask, member, tell

pytestmark = [pytest.mark.long, pytest.mark.exact]
PATIENCE = 240
PARAMS = toy_params()
SETTINGS = {"sigma": 0.1, "population_size": 6}


def optimizer():
    return egd(0.25, **SETTINGS)


def opened():
    tx = optimizer()
    grads = jax.tree.map(lambda leaf: leaf - 0.25, PARAMS)
    return tx, *jax.jit(lambda g, s, p: ask(tx, g, s, p))(grads, tx.init(PARAMS), PARAMS)


def here(asked):
    """The fitness of a round, found in this process."""
    ticket, parent = asked.ticket, asked.parent
    return [score(member(ticket, parent, index)) for index in range(ticket.size)]


def through(tx, asked, state, scores):
    while isinstance(asked, ask_tell.Asked):
        asked, state = tell(tx, asked, scores(asked), state, PARAMS)
    return asked, state


def pool_of(parent, folder, workers=2):
    """Processes that load the parent from a file; they start afresh, as on another machine."""
    # As an argument its size would let a process wait for the start of the one before. The pool of
    # Python 3.11 hangs if that one is killed meanwhile.
    file = folder / "parent.pickle"
    file.write_bytes(pickle.dumps(jax.device_get(parent)))
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, initializer=load, initargs=(file,))


def gathered(ticket, pool, missing, die_once=None):
    """The fitness of some candidates as it comes; without that of a process that is killed."""
    futures = {pool.submit(scored, ticket, index, die_once): index for index in missing}
    found = {}
    for future in as_completed(futures, timeout=PATIENCE):
        if not isinstance(future.exception(), BrokenProcessPool):
            found[futures[future]] = future.result()
    return found


def test_a_member_of_a_killed_process_is_asked_again(tmp_path):
    tx, asked, state = opened()
    pools = []

    def scores(asked):
        found, die_once = {}, str(tmp_path / asked.ticket.kind)
        while len(found) < asked.ticket.size:
            missing = [index for index in range(asked.ticket.size) if index not in found]
            with pool_of(asked.parent, tmp_path) as pool:
                found |= gathered(asked.ticket, pool, missing, die_once)
            pools.append(len(missing))
        return [found[index] for index in range(asked.ticket.size)]

    found = through(tx, asked, state, scores)
    assert pools[0] == asked.ticket.size
    assert len(pools) == 4  # two for the members, and two for the child
    chex.assert_trees_all_equal(found, through(tx, asked, state, here))


def test_a_member_of_a_killed_process_counts_as_worst(tmp_path):
    tx, asked, state = opened()
    die_once = str(tmp_path / "died")
    with pool_of(asked.parent, tmp_path, workers=1) as pool:
        # The one process ends two members before it is killed.
        found = gathered(asked.ticket, pool, [0, 3])
        found |= gathered(asked.ticket, pool, [1, 2, 4, 5], die_once)
    assert found == {index: here(asked)[index] for index in (0, 3)}
    fitness = [found.get(index, math.nan) for index in range(asked.ticket.size)]
    asked, state = tell(tx, asked, fitness, state, PARAMS)
    updates, state = through(tx, asked, state, here)
    assert float(state.info.mean_fitness) == np.float32(np.mean(np.float32([*found.values()])))
    assert all(np.isfinite(leaf).all() for leaf in updates.values())


def test_another_process_ends_a_cycle():
    tx, asked, state = opened()
    stored = pickle.dumps(jax.device_get((PARAMS, state, asked)))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        other = pool.submit(ask_tell_worker.finished_by, stored, SETTINGS).result(PATIENCE)
    chex.assert_trees_all_equal(other, finished(stored, tx))
    chex.assert_trees_all_equal(other, through(tx, asked, state, here))


class Scorer(http.server.BaseHTTPRequestHandler):
    """An engine that holds the parent, and scores the candidates of a ticket."""

    def do_POST(self):
        ticket = pickle.loads(self.rfile.read(int(self.headers["Content-Length"])))
        made = member(ticket, self.server.parent, np.arange(ticket.size))
        each = [jax.tree.map(lambda leaf, at=at: leaf[at], made) for at in range(ticket.size)]
        body = json.dumps([score(one) for one in each]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def engine():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Scorer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(PATIENCE)


def test_an_engine_gets_tickets_and_returns_numbers(engine):
    tx, asked, state = opened()
    sent = []

    def scores(asked):
        engine.parent = asked.parent  # what the engine loads, once for a round
        sent.append(pickle.dumps(asked.ticket))
        url = f"http://127.0.0.1:{engine.server_address[1]}"
        with urllib.request.urlopen(url, sent[-1], timeout=PATIENCE) as answer:
            return json.load(answer)

    found = through(tx, asked, state, scores)
    assert max(map(len, sent)) < 1500
    chex.assert_trees_all_equal(found, through(tx, asked, state, here))


@pytest.mark.filterwarnings("ignore")  # of Ray, which starts its processes with `os.fork`
def test_actors_of_ray_score_members():
    ray = pytest.importorskip("ray", reason="NOT CHECKED: ray is not installed")
    tx, asked, state = opened()
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    env = {"env_vars": {"PYTHONPATH": path}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=env)
    try:

        def scores(asked):
            parent = ray.put(jax.device_get(asked.parent))
            actor = ray.remote(ask_tell_worker.Actor).remote(parent)
            awaited = [actor.scored.remote(asked.ticket, at) for at in range(asked.ticket.size)]
            return ray.get(awaited, timeout=PATIENCE)

        found = through(tx, asked, state, scores)
    finally:
        ray.shutdown()
    chex.assert_trees_all_equal(found, through(tx, asked, state, here))

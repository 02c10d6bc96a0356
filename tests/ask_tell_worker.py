"""What other processes do for a cycle: they make members from tickets, and score them."""

import os
from pathlib import Path
import pickle
import signal

import jax
import numpy as np

from egd_optax import egd
from egd_optax.ask_tell import Asked, member, tell

LARGE = (182, 181)  # more than the library puts side by side with others


def toy_params():
    draw = np.random.default_rng(5).normal
    shapes = {"large": LARGE, "left": (5, 3), "right": (5, 3)}
    return {name: draw(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}


def score(params):
    """A fitness that any bit of any parameter changes."""
    leaves = [np.asarray(leaf).astype(np.float64) for leaf in jax.tree.leaves(params)]
    return float(sum(np.sin(7 * leaf).sum() for leaf in leaves))


class _Held:
    parent = None


def hold(parent):
    """Gives this process the parent."""
    _Held.parent = parent


def load(file):
    """Gives this process the parent that a file holds."""
    hold(pickle.loads(file.read_bytes()))


def scored(ticket, index, die_once=None):
    """The fitness of one candidate; the first to find no file there writes it, and is killed."""
    if die_once is not None and not Path(die_once).exists():
        Path(die_once).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return score(member(ticket, _Held.parent, index))


def finished(stored, tx):
    """The updates and the state of a cycle that another process opened."""
    params, state, asked = pickle.loads(stored)
    while isinstance(asked, Asked):
        ticket, parent = asked.ticket, asked.parent
        fitness = [score(member(ticket, parent, index)) for index in range(ticket.size)]
        asked, state = tell(tx, asked, fitness, state, params)
    return asked, state


def finished_by(stored, settings):
    """The same, with an optimizer of this process; as NumPy's arrays."""
    return jax.device_get(finished(stored, egd(0.25, **settings)))


class Actor:
    """An actor that holds the parent."""

    def __init__(self, parent):
        hold(parent)

    def scored(self, ticket, index):
        return scored(ticket, index)

"""Rules of acceptance by name, and one written outside of the library."""

import dataclasses

from egd_optax import accept


@dataclasses.dataclass(frozen=True)
class Finite(accept.Accept):
    """The child, if its fitness is finite."""

    takes_best = False

    def choose(self, key, parent, best, child, state):
        return accept.CHILD, state


ACCEPT = {
    "always": accept.always(),
    "finite": Finite(),
    "improved": accept.improved(),
    "best": accept.best(),
}

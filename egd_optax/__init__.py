"""Evolutionary Gradient Descent for optax.

params --base.update--> parent ----- idle steps end here
parent --mutate-------> members      every `evolve_every` steps
member --value_fn-----> fitness      forward only
best k --recombine----> child        or all members, weighed by rank
child, elite or parent --> update    never worse, unless accept="always"
"""

from egd_optax import presets
from egd_optax._cycle import CycleInfo
from egd_optax._egd import egd
from egd_optax._evolve import STATIC_ARGS, EvolveState, evolve, is_due
from egd_optax._frozen import with_frozen

__all__ = [
    "STATIC_ARGS",
    "CycleInfo",
    "EvolveState",
    "egd",
    "evolve",
    "is_due",
    "presets",
    "with_frozen",
]
__version__ = "0.1.0"

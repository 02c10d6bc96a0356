"""Evolutionary Gradient Descent for optax.

params --base.update--> parent ----- idle steps end here
parent --noise--------> members      every `evolve_every` steps
member --value_fn-----> fitness      forward only
fitness --recombine---> weights      of the best members, or of all
weighted sum --es_optimizer--> child
accept --> child, best member or parent --> update
"""

from egd_optax import (
    accept,
    ask_tell,
    callback,
    checkpoint,
    diagnose,
    execution,
    factored,
    noise,
    presets,
    recombine,
    sigma,
)
from egd_optax._due import is_due
from egd_optax._evolve import egd, evolve
from egd_optax._state import EvolveState
from egd_optax.core.info import CycleInfo
from egd_optax.execution import Execution
from egd_optax.wrappers import bind_value_fn, with_frozen

__all__ = [
    "CycleInfo",
    "EvolveState",
    "Execution",
    "accept",
    "ask_tell",
    "bind_value_fn",
    "callback",
    "checkpoint",
    "diagnose",
    "egd",
    "evolve",
    "execution",
    "factored",
    "is_due",
    "noise",
    "presets",
    "recombine",
    "sigma",
    "with_frozen",
]
__version__ = "0.1.0"

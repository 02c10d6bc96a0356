"""Evolutionary Gradient Descent for optax.

params --base.update--> parent ----- idle steps end here
parent --noise--------> members      every `evolve_every` steps
member --value_fn-----> fitness      forward only
fitness --recombine---> weights      of the best members, or of all
parent + weighted sum -> child
child, elite or parent --> update    never worse with accept "improved" or "best"
"""

from egd_optax import factored, host, noise, presets, recombine
from egd_optax._bound import bind_value_fn
from egd_optax._checks import STATIC_ARGS
from egd_optax._cycle import Aux, CycleInfo
from egd_optax._diagnose import Diagnosis, diagnose
from egd_optax._egd import egd
from egd_optax._evolve import EvolveState, evolve, is_due
from egd_optax._explain import ExplainedLeaf, Explanation, explain
from egd_optax._frozen import with_frozen
from egd_optax.execution import Execution

__all__ = [
    "STATIC_ARGS",
    "Aux",
    "CycleInfo",
    "Diagnosis",
    "EvolveState",
    "Execution",
    "ExplainedLeaf",
    "Explanation",
    "bind_value_fn",
    "diagnose",
    "egd",
    "evolve",
    "explain",
    "factored",
    "host",
    "is_due",
    "noise",
    "presets",
    "recombine",
    "with_frozen",
]
__version__ = "0.1.0"

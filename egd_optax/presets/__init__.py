"""Settings by what they are for, as keyword dictionaries for `evolve` and `egd`.

>>> import optax
>>> from egd_optax import evolve, presets
>>> tx = evolve(optax.adam(1e-3), **presets.metric())
>>> tx = evolve(optax.adam(1e-3), **presets.metric(steps=2000, sigma=0.03), key=1)

They are a start for the search for settings, not its end: `sigma` depends on the
problem. benchmarks/quality measures what each of them reaches, and where it loses.

`openai_es`, `eggroll`, `mezo`, `fzoo` and `es_at_scale` are published strategies without gradients:

>>> tx = evolve(optax.set_to_zero(), **presets.mezo(learning_rate=1e-6))
"""

from egd_optax.presets.eggroll import eggroll
from egd_optax.presets.es_at_scale import es_at_scale
from egd_optax.presets.finish import finish
from egd_optax.presets.fzoo import fzoo
from egd_optax.presets.global_search import global_search
from egd_optax.presets.metric import metric
from egd_optax.presets.mezo import mezo
from egd_optax.presets.openai_es import openai_es
from egd_optax.presets.safe import safe

__all__ = [
    "eggroll",
    "es_at_scale",
    "finish",
    "fzoo",
    "global_search",
    "metric",
    "mezo",
    "openai_es",
    "safe",
]

"""The two stories that the demo tells, and the settings of their methods.

Plain training: the network is used as it was trained. Ternary weights: every weight
matrix is rounded to three values before use, so the loss that counts has no gradient.
SGD follows the gradient before rounding; EGD does so too, and its cycles select on the
loss after rounding. Straight-through is the usual substitute for the missing gradient
and shown for reference: a loss without such a substitute is where EGD is needed.

How the settings were chosen: `demo.tune` searched 36 settings of each method on seeds
100, 101 and 102 for the lowest mean validation error of the best checkpoint, and the
test images were not looked at.

* SGD, with and without straight-through: learning rate 0.01, 0.03, 0.1; weight decay
  0, 1e-3, 1e-2, 3e-2; batch 8, 32, 128.
* EGD: weight decay 0, 1e-3; a cycle every 10, 30, 100 steps; sigma 0.02, 0.05, 0.1;
  accept "always", "best". Fixed beforehand: learning rate 0.1 and batch 32, which are
  also what SGD does best with; population 32, a quarter of it elite, and fitness on 32
  images, which about ten runs on seeds 100 and 101 gave no reason to change.
* All: momentum 0.9, cosine decay of the learning rate.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from demo.digits import Params
from demo.method import Cycles, Method
from demo.ternary import ternarize

SEEDS = (0, 1, 2)
# Sample-forwards of a run: 6,250 gradient steps on 32 images, about 220 epochs.
BUDGET = 600_000
CHECKS = 50


class Story(NamedTuple):
    """A comparison of methods.

    Attributes:
        title: what the story is about.
        deploy: what the trained parameters become before they are used.
        methods: the methods compared, by name.
    """

    title: str
    deploy: Callable[[Params], Params]
    methods: Mapping[str, Method]


def as_trained(params: Params) -> Params:
    """Deploys the parameters unchanged."""
    return params


def egd(weight_decay: float, evolve_every: int, sigma: float, accept: str) -> Method:
    """EGD with what was fixed before the others were searched, see above."""
    cycles = Cycles(
        evolve_every=evolve_every,
        population_size=32,
        elite_fraction=0.25,
        sigma=sigma,
        accept=accept,
        fitness_size=32,
    )
    return Method(learning_rate=0.1, weight_decay=weight_decay, batch_size=32, cycles=cycles)


STORIES = (
    Story(
        title="Plain training",
        deploy=as_trained,
        methods={
            "SGD": Method(learning_rate=0.1, weight_decay=1e-3, batch_size=32),
            "EGD": egd(weight_decay=1e-3, evolve_every=100, sigma=0.1, accept="best"),
        },
    ),
    Story(
        title="Ternary weights",
        deploy=ternarize,
        methods={
            "SGD": Method(learning_rate=0.1, weight_decay=1e-2, batch_size=32),
            "EGD": egd(weight_decay=1e-3, evolve_every=10, sigma=0.05, accept="always"),
            "SGD, straight-through": Method(
                learning_rate=0.03, weight_decay=1e-3, batch_size=8, straight_through=True
            ),
        },
    ),
)

"""The 24 functions by their number, and the groups that BBOB has them in.

From the definitions of Hansen, Finck, Ros and Auger, `Real-Parameter Black-Box Optimization
Benchmarking 2009: Noiseless Functions Definitions <https://inria.hal.science/inria-00362633>`_.
Instances are those of COCO. Values are above that of the optimum.
"""

from collections.abc import Callable

import jax

from benchmarks.bbob import multimodal, unimodal
from benchmarks.bbob.instance import Instance

Function = Callable[[jax.Array, Instance], jax.Array]

FUNCTIONS: dict[int, Function] = {
    1: unimodal.sphere,
    2: unimodal.ellipsoid,
    3: multimodal.rastrigin,
    4: multimodal.bueche_rastrigin,
    5: unimodal.linear_slope,
    6: unimodal.attractive_sector,
    7: unimodal.step_ellipsoid,
    8: unimodal.rosenbrock,
    9: unimodal.rosenbrock_rotated,
    10: unimodal.ellipsoid_rotated,
    11: unimodal.discus,
    12: unimodal.bent_cigar,
    13: unimodal.sharp_ridge,
    14: unimodal.different_powers,
    15: multimodal.rastrigin_rotated,
    16: multimodal.weierstrass,
    17: multimodal.schaffers,
    18: multimodal.schaffers_ill_conditioned,
    19: multimodal.griewank_rosenbrock,
    20: multimodal.schwefel,
    21: multimodal.gallagher,
    22: multimodal.gallagher,
    23: multimodal.katsuura,
    24: multimodal.lunacek,
}

GROUPS = {
    "separable": range(1, 6),
    "moderate condition": range(6, 10),
    "high condition": range(10, 15),
    "many minima, clear structure": range(15, 20),
    "many minima, weak structure": range(20, 25),
}

# Those with many minima, the separable ones included.
MULTIMODAL = (3, 4, *range(15, 25))

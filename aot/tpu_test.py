"""That a program for a TPU takes what is read from it, and not what `memory_analysis` names.

A chip of TPU v5e has 15.75 GiB. The parameters, their momentum, and twice the size of the
parameters beside them: a step with a cycle of parameters of 3.9 GiB fits, and compiles. With
what `memory_analysis` names it would not.
"""

import jax
import pytest

from aot.compiled import compile_step, missing, params_bytes

CHIP = 15.75 * 2**30
ARGUMENTS = 2  # parameters and momentum


@pytest.fixture(autouse=True)
def _compiler():
    if reason := missing("TPU v5e"):
        pytest.skip(f"NOT CHECKED for TPU v5e: {reason}")


def test_what_fits_by_the_program_compiles():
    side = 16128
    step = compile_step("TPU v5e", "replay", 16, 8, side=side)
    taken, analysed = (
        (ARGUMENTS + copies) * params_bytes(side=side) for copies in (step.device, step.analysed)
    )
    assert taken < CHIP < analysed


def test_what_does_not_fit_by_the_program_does_not_compile():
    side = 16512
    assert (ARGUMENTS + 2) * params_bytes(side=side) > CHIP
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        compile_step("TPU v5e", "replay", 16, 8, side=side)

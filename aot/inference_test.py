"""An evolution strategy at the memory of inference, on a GPU that is not here."""

import pytest

from benchmarks import inference
from benchmarks.pod_plan import Model

# Layers in a stack: each of the largest leaves is a fifth of all parameters.
SMALL = Model(1024, 8, 2816, 8, 8)


@pytest.mark.parametrize("method", ["low rank, formed", "low rank, factored"])
def test_a_strategy_holds_its_updates_beside_the_parameters_and_next_to_nothing_else(method):
    alone = inference.measure_case("H100", 1, "inference", SMALL)
    strategy = inference.measure_case("H100", 1, method, SMALL)
    # The updates are one copy. A sum in float32 of one stack would be .43 of all in addition.
    assert strategy["over_params"] - alone["over_params"] < 1.15

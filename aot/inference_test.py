"""An evolution strategy at the memory of inference, on a GPU that is not here."""

import pytest

from benchmarks import inference
from benchmarks.pod_plan import Model

# Layers in a stack: each of the largest leaves is a fifth of all parameters.
SMALL = Model(1024, 8, 2816, 8, 8)


@pytest.mark.parametrize(
    ("method", "above"),
    [
        # The updates are one copy. A sum in float32 of one stack is .43 of all in addition.
        ("low rank, formed", 1.15),
        ("low rank, factored", 1.15),
        # A member is formed, and summed leaf by leaf. All sums at a time would be two copies.
        ("gaussian, formed", 2.1),
    ],
)
def test_a_strategy_holds_little_beside_the_parameters(method, above):
    alone = inference.measure_case("H100", 1, "inference", SMALL)
    strategy = inference.measure_case("H100", 1, method, SMALL)
    assert strategy["over_params"] - alone["over_params"] < above

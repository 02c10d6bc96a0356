"""A host function that ends the process by its own will: every device learns of it at once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from egd_optax import Execution, callback, evolve

PARAMS = jnp.linspace(0.0, 1.0, 16)


class Stopped(BaseException):
    """As frameworks raise that no `except Exception` is to catch."""


@pytest.mark.parametrize("on_error", ["worst", "raise"])
@pytest.mark.parametrize("error", [SystemExit(2), KeyboardInterrupt(), Stopped("here")])
@pytest.mark.parametrize("devices", [1, 8])
def test_what_is_no_exception_is_raised_and_named(devices, error, on_error):
    calls = []

    def tool(params):
        calls.append(1)
        if len(calls) == 5:
            raise error
        return float(np.sum(params**2))

    mesh = jax.make_mesh((devices,), ("pop",), axis_types=(jax.sharding.AxisType.Auto,))
    execution = Execution(population_axis="pop", mesh=mesh)
    tx = evolve(optax.sgd(0.1), evolve_every=1, population_size=8, execution=execution)
    value_fn = callback.host_value_fn(tool, on_error=on_error)
    params = jax.device_put(PARAMS, jax.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    step = jax.jit(lambda params, state: tx.update(params, state, params, value_fn=value_fn))
    with pytest.raises(RuntimeError, match=type(error).__name__):
        jax.block_until_ready(step(params, tx.init(params)))
    calls[:] = range(9)  # the next step goes on
    updates, _ = step(params, tx.init(params))
    assert np.isfinite(updates).all()

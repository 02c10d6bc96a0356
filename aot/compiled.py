"""A train step compiled for a TPU or a GPU that is not here."""

import functools
import importlib.util
from pathlib import Path
from typing import NamedTuple

import jax
from jax.experimental import topologies
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import optax

from benchmarks import tpu
from benchmarks.hlo import Program, parse
from egd_optax import Execution, egd, recombine
from xla_options import known

CHIPS = 4
# Members, elites, and chips that the parameters are spread over.
CASES = ((8, 2, 1), (16, 8, 1), (64, 16, 1), (16, 8, CHIPS))
# Leaves of 144 MiB: smaller ones the compiler for a TPU keeps in the fast memory of the chip,
# 128 MiB on a v5e, so that what its programs take tells nothing of a network that is larger.
SIDE = 6144
LEAF_COUNT = 4
# The module that compiles for each target.
PLUGINS = {"TPU v5e": "libtpu", "H100": "jax_plugins.xla_cuda13"}


class Compiled(NamedTuple):
    """The optimised program, and what it allocates on one chip in copies of the parameters.

    Attributes:
        program: the program of one chip.
        device: device memory beside arguments and results that the program takes.
        analysed: what `memory_analysis` says of that; the same but for a TPU, see `benchmarks.tpu`.
        host: host memory beside arguments and results.
    """

    program: Program
    device: float
    analysed: float
    host: float


def missing(target: str) -> str | None:
    """Why nothing can be compiled for a target here, or None."""
    try:
        found = importlib.util.find_spec(PLUGINS[target])
    except ModuleNotFoundError:  # the package of the module is not there either
        found = None
    return None if found else f"{PLUGINS[target]} is not installed"


@functools.cache
def compile_step(
    target: str,
    memory: str,
    population: int,
    elites: int,
    chips: int = 1,
    *,
    evolve: bool | None = None,
    side: int = SIDE,
    learns: bool = False,
) -> Compiled:
    """Compiles gradient, update and new parameters, with donated parameters and state.

    Args:
        target: a key of `PLUGINS`.
        memory: see `egd_optax.Execution`.
        population: members a cycle.
        elites: members that recombine.
        chips: devices that the rows of every parameter are spread over.
        evolve: see `egd_optax.evolve`.
        side: rows and columns of every parameter.
        learns: whether each member takes a gradient step before it is scored.
    """
    mesh = Mesh(topology(target).devices[:chips], ("rows",))
    tx = egd(
        0.1,
        0.9,
        population_size=population,
        recombine=recombine.mean(elite_fraction=elites / population),
        refine=_descend if learns else None,
        execution=Execution(memory=memory),
    )

    def step(params, state):
        grads = jax.grad(_loss)(params)
        updates, state = tx.update(grads, state, params, value_fn=_loss, evolve=evolve)
        return optax.apply_updates(params, updates), state

    params = _spread((jax.ShapeDtypeStruct((side, side), jnp.float32),) * LEAF_COUNT, mesh)
    state = _spread(jax.eval_shape(tx.init, params), mesh)
    with jax.set_mesh(mesh):  # tells "host" which platform the program is for
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state)
        if target == "TPU v5e":
            compiled, taken = tpu.compile_measured(lowered)
        else:
            compiled = lowered.compile(known("untuned"))
            taken = compiled.memory_analysis().temp_size_in_bytes
    used, size = compiled.memory_analysis(), params_bytes(chips, side)
    return Compiled(
        parse(compiled.as_text()),
        taken / size,
        used.temp_size_in_bytes / size,
        used.host_temp_size_in_bytes / size,
    )


def params_bytes(chips: int = 1, side: int = SIDE) -> int:
    """Bytes of the parameters on one chip."""
    return LEAF_COUNT * side * side * jnp.dtype(jnp.float32).itemsize // chips


def topology(target: str) -> topologies.TopologyDescription:
    """The devices of a target."""
    if target == "TPU v5e":
        return tpu.topology("v5e:2x2")
    config = Path(__file__).with_name("h100.txtpb").read_text()
    return topologies.get_topology_desc(
        platform="cuda", target_config=config, topology=f"1x1x{CHIPS}"
    )


def _loss(params):
    x = jnp.ones((128, len(params[0])))
    for weights in params:
        x = jnp.tanh(x @ weights)
    return jnp.mean(x**2)


def _descend(params, key, i):
    grads = jax.grad(_loss)(params)
    return jax.tree.map(lambda param, grad: param - 0.1 * grad, params, grads)


def _spread(tree, mesh):
    def place(leaf):
        spec = PartitionSpec("rows") if leaf.ndim == 2 else PartitionSpec()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, tree)

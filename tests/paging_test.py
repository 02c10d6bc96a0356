"""Where elites live, and what happens where there is no pinned host memory."""

import contextlib
import subprocess
import sys
import types
from typing import NamedTuple
import warnings

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egd_optax import Execution, egd, noise, recombine

# Pages and slots are nobody's interface: what they hold in the middle of a cycle is tested here.
from egd_optax.backend.memory import Device, PinnedHost, has_pinned_host
from egd_optax.backend.unwritten import unwritten
from egd_optax.core.select import empty_slots, slots_of

pytestmark = pytest.mark.exact

PARAMS = jnp.ones((200, 200))  # small leaves have no pages


def program(memory, context=contextlib.nullcontext, **kwargs):
    execution = Execution(memory=memory)
    tx = egd(0.1, evolve_every=1, population_size=8, execution=execution, **kwargs)
    update = lambda g, s, p: tx.update(g, s, p, value_fn=lambda p: jnp.sum(p**2))  # noqa: E731
    state = tx.init(PARAMS)
    with context():
        return str(jax.make_jaxpr(update)(PARAMS, state, PARAMS))


def test_host_elites_are_k_whole_buffers_in_host_memory():
    text = program("host", recombine=recombine.mean(0.375))
    assert "f32<host>[1,200,200]" in text
    assert "f32<host>[3,1,200,200]" not in text
    for population in (3, 8):  # no stack of elites or members on the device either
        assert f"f32[{population},1,200,200]" not in text


@pytest.mark.parametrize("memory", ["device", "replay"])
def test_the_other_modes_do_not_use_host_memory(memory):
    assert "<host>" not in program(memory)


def test_the_state_holds_no_elite():
    for memory in ("host", "device", "replay"):
        tx = egd(0.1, recombine=recombine.mean(1.0), execution=Execution(memory=memory))
        state = tx.init(PARAMS)
        assert max(leaf.size for leaf in jax.tree.leaves(state)) <= 2


def temp_in_copies(memory, population_size, elite_count, **kwargs):
    """Temporary memory of the compiled step, in copies of the parameters."""
    params = jax.ShapeDtypeStruct((512, 512), jnp.float32)
    tx = egd(
        0.1,
        population_size=population_size,
        recombine=recombine.mean(elite_count / population_size),
        execution=Execution(memory=memory),
        **kwargs,
    )
    step = jax.jit(lambda g, s, p: tx.update(g, s, p, value_fn=lambda p: jnp.sum(p[0])))
    compiled = step.lower(params, jax.eval_shape(tx.init, params), params).compile()
    return compiled.memory_analysis().temp_size_in_bytes / (512 * 512 * 4)


@pytest.mark.wide
@pytest.mark.parametrize("memory", ["host", "device"])
def test_an_elite_costs_one_page_and_a_member_none(memory):
    few = temp_in_copies(memory, 16, 6)
    # CPU counts pages in host memory among the temporaries.
    assert temp_in_copies(memory, 16, 14) - few < 8.1
    assert temp_in_copies(memory, 64, 6) - few < 0.1


@pytest.mark.wide
@pytest.mark.parametrize(
    ("memory", "kind"),
    [("replay", noise.gaussian()), ("host", noise.low_rank()), ("device", noise.low_rank())],
    ids=["replay, gaussian", "host, low_rank", "device, low_rank"],
)
def test_an_elite_that_is_drawn_again_costs_no_memory(memory, kind):
    few = temp_in_copies(memory, 16, 6, noise=kind)
    assert temp_in_copies(memory, 16, 14, noise=kind) - few < 0.1
    assert temp_in_copies(memory, 64, 6, noise=kind) - few < 0.1


KINDS = pytest.mark.parametrize(
    "kind", [noise.gaussian(), noise.low_rank()], ids=["gaussian", "low_rank"]
)


@pytest.mark.crossed(2)
@pytest.mark.parametrize(
    "kwargs",
    [{"execution": Execution(memory="replay")}, {"recombine": recombine.centered_rank()}],
    ids=["replay", "centered_rank"],
)
@pytest.mark.parametrize(
    ("kind", "parents"),
    [(noise.gaussian(), 0), (noise.low_rank(), 1)],
    ids=["gaussian", "low_rank"],
)
def test_a_cycle_holds_two_copies(kind, parents, kwargs):
    """The updates, and either the active member or the sum; the parent of full noise is no copy."""
    # And two leaves in the making, and activations. Members of low rank are formed of a parent
    # that is held; with so few samples all leaves of one exist at a time.
    assert copies_of(8, 256, noise=kind, **kwargs) < 2 + parents + 2.5 / 8


@pytest.mark.crossed(1)
@KINDS
@pytest.mark.parametrize("population_size", [4, 64])
def test_small_leaves_are_held_more_often_whatever_the_population(kind, population_size):
    """The updates, parent, member, its noise and the numbers that it comes from, all leaves."""
    kwargs = {"population_size": population_size, "execution": Execution(memory="replay")}
    assert 2 < copies_of(8, 128, noise=kind, **kwargs) < 8.5


def copies_of(count, side, **kwargs):
    """The temporary memory of a step with a cycle, over that of its square matrices."""
    leaves = [jax.ShapeDtypeStruct((side, side), jnp.float32)] * count
    tx = egd(0.1, evolve_every=1, **{"population_size": 16} | kwargs)

    def value_fn(params):
        x = jnp.ones((2, side))
        for weights in params:
            x = jnp.tanh(x @ weights)
        return jnp.sum(x)

    def step(params, state):
        updates, state = tx.update(jax.grad(value_fn)(params), state, params, value_fn=value_fn)
        return jax.tree.map(jnp.add, params, updates), state

    donating = jax.jit(step, donate_argnums=(0, 1))
    compiled = donating.lower(leaves, jax.eval_shape(tx.init, leaves)).compile()
    return compiled.memory_analysis().temp_size_in_bytes / (count * side * side * 4)


class FakeDevice(NamedTuple):
    """As much of a device as the choice of memory looks at."""

    platform: str
    kinds: tuple[str, ...]

    def addressable_memories(self):
        return [types.SimpleNamespace(kind=kind) for kind in self.kinds]


@pytest.fixture
def run_on(monkeypatch):
    has_pinned_host.cache_clear()
    return lambda *device: monkeypatch.setattr(jax, "local_devices", lambda: [FakeDevice(*device)])


@pytest.mark.on_cpu
def test_host_falls_back_to_the_device_with_one_warning(run_on):
    run_on("toaster", ("device",))
    with pytest.warns(UserWarning, match="'toaster' has no pinned host memory.*replay") as caught:
        fallback, again = program("host"), program("host")
    assert len(caught) == 1
    assert fallback == again == program("device")


@pytest.mark.on_cpu
def test_host_needs_an_accelerator_with_pinned_memory(run_on):
    run_on("gpu", ("device", "pinned_host"))
    assert "<host>" in program("host")


@pytest.mark.on_cpu
def test_on_cpu_host_memory_is_device_memory():
    assert program("host") == program("device")


@pytest.mark.on_cpu
def test_a_program_compiled_on_cpu_for_an_accelerator_uses_its_host_memory():
    device = jax.sharding.AbstractDevice(device_kind="TPU v5e", num_cores=1, platform="tpu")
    mesh = jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)
    assert "<host>" in program("host", lambda: jax.sharding.use_abstract_mesh(mesh))


@pytest.mark.on_cpu
def test_the_other_modes_need_no_host_memory_and_do_not_warn(run_on):
    run_on("toaster", ("device",))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        program("device")
        program("replay")


# Fitness of members 0, 1, ... and the slot of three that each of them takes; 3 is none.
ARRIVALS = [
    (5.0, 2),  # empty slots are taken from the last
    (np.inf, 3),
    (7.0, 1),
    (7.0, 0),
    (np.inf, 3),
    (7.5, 3),
    (7.0, 3),  # no better than the worst
    (6.0, 0),  # of two that are the worst member 3, drawn last
    (5.0, 1),
    (5.0, 0),
    (5.0, 3),
    (4.0, 0),  # the place of member 9
    (3.0, 1),  # of member 8
    (2.0, 2),  # and of member 0
]


def test_a_newcomer_takes_the_slot_of_the_worst():
    slots = empty_slots(3)
    fitness, member = [np.inf] * 3, [-3, -2, -1]
    for newcomer, (its_fitness, slot) in enumerate(ARRIVALS):
        slots, taken = slots.insert(jnp.int32(newcomer), jnp.float32(its_fitness))
        assert int(taken) == slot
        if slot < 3:
            fitness[slot], member[slot] = its_fitness, newcomer
        np.testing.assert_array_equal(slots.fitness, fitness)
        np.testing.assert_array_equal(slots.member, member)
    together = slots_of(jnp.array([fitness for fitness, _ in ARRIVALS]), 3)
    np.testing.assert_array_equal(together.fitness, fitness)
    np.testing.assert_array_equal(together.member, member)


def page_of(member):
    return (jnp.full(2, member, jnp.float32),)


def inserted(memory, count, fitness):
    """The slots after members 0, 1, ... of this fitness, and pages that hold their numbers."""

    def insert(member, kept):
        slots, pages = kept
        slots, taken = slots.insert(member, fitness[member])
        slot = jnp.where(member > 0, taken, count)
        return slots, memory.put(pages, slot, page_of(member))

    start = empty_slots(count), memory.empty(page_of(-1), count)
    return jax.lax.fori_loop(0, fitness.size, insert, start)


def pages_of(memory, pages, count):
    """The numbers that the pages hold, in the order of their slots."""
    found = memory.fold(
        pages,
        jnp.ones(count, bool),
        lambda all_, slot, page: all_.at[slot].set(page[0][0]),
        jnp.zeros(count),
    )
    return found.tolist()


@jax.jit(static_argnums=0)
def by_all_ways(count, fitness):
    return (
        (slots_of(fitness, count), None),
        inserted(Device(), count, fitness),
        inserted(PinnedHost(), count, fitness),
    )


# Ties, zeros of both signs, and infinity, of 9 members.
scores = st.lists(
    st.sampled_from([-2.0, -0.0, 0.0, 0.5, 1.0, 1e30, np.inf])
    | st.floats(-3, 3, width=32, allow_subnormal=False),
    min_size=9,
    max_size=9,
)


@pytest.mark.wide
@given(scores=scores, count=st.integers(1, 9))
def test_the_slots_hold_the_k_smallest_by_fitness_and_member(scores, count):
    fitness = jnp.array(scores, jnp.float32)
    # Python compares as IEEE does: -0.0 and 0.0 are equal, and the member decides.
    ranked = sorted((float(score), member) for member, score in enumerate(fitness))
    best = [(score, member) for score, member in ranked[:count] if score < np.inf]
    (first, _), *others = by_all_ways(count, fitness)
    assert first.fitness.shape == first.member.shape == (count,)
    full = np.asarray(first.member) >= 0
    held = zip(first.fitness[full].tolist(), first.member[full].tolist(), strict=True)
    assert sorted(held) == best
    assert np.isinf(first.fitness[~full]).all()
    for memory, (slots, pages) in zip((Device(), PinnedHost()), others, strict=True):
        np.testing.assert_array_equal(slots.fitness, first.fitness)
        np.testing.assert_array_equal(slots.member, first.member)
        numbers = pages_of(memory, pages, count)
        for member, number in zip(slots.member.tolist(), numbers, strict=True):
            if member > 0:  # the parent has no page
                assert number == member


@pytest.mark.parametrize("memory", [Device(), PinnedHost()], ids=lambda m: type(m).__name__)
def test_pages_are_folded_once_in_the_order_of_their_slots(memory):
    # Member 1 takes slot 2, 2 slot 1, 3 slot 0, and 5 that of 1; 4 and 6 are none of the best.
    fitness = jnp.array([jnp.inf, 3.0, 2.0, 1.0, 3.0, 2.5, jnp.inf])
    slots, pages = inserted(memory, 3, fitness)
    np.testing.assert_array_equal(slots.member, [3, 2, 5])

    def append(digits, slot, leaves):
        return 100 * digits + 10 * slot + leaves[0][0]

    def folded(*on):
        return int(memory.fold(pages, jnp.array(on), append, jnp.float32(9)))

    assert folded(True, False, True) == 9_03_25
    assert folded(True, True, True) == 9_03_12_25
    assert folded(True, True, False) == 9_03_12
    assert folded(False, False, True) == 9_25
    assert folded(False, False, False) == 9


@pytest.mark.wide
@pytest.mark.on_cpu
def test_many_elites_compile_as_fast_as_few():
    """Pages on the device are one buffer; above so many on the host members are drawn again."""

    def size(count, memory):
        params = jax.ShapeDtypeStruct((200, 200), jnp.float32)
        tx = egd(
            0.1, population_size=2 * count, recombine=recombine.mean(0.5),
            execution=Execution(memory=memory),
        )  # fmt: skip
        step = lambda g, s, p: tx.update(g, s, p, value_fn=lambda p: jnp.sum(p**2))  # noqa: E731
        return len(jax.jit(step).lower(params, jax.eval_shape(tx.init, params), params).as_text())

    for memory in ("host", "device", "replay"):
        assert size(512, memory) < 1.2 * size(8, memory)


def test_importing_the_library_starts_no_backend_and_needs_no_flax():
    script = (
        "import sys, egd_optax, optax; egd_optax.egd(0.1, key=3);"
        "assert 'flax' not in sys.modules;"
        "import jax._src.xla_bridge as bridge;"
        "assert not bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("devices", [1, 8])
def test_a_blank_page_is_like_its_leaf_on_every_platform(devices):
    mesh = jax.make_mesh((devices,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.sharding.NamedSharding(mesh, jax.P("x"))
    leaf = jax.device_put(jnp.ones((8, 4, 5), jnp.bfloat16), sharded)
    for fn in (unwritten, jax.vmap(unwritten), jax.vmap(unwritten, in_axes=1, out_axes=1)):
        blank = jax.jit(fn)(leaf)
        assert (blank.shape, blank.dtype) == (leaf.shape, leaf.dtype)
        # A GPU among several is given the size of its part when the program is divided.
        lowered = jax.jit(fn).trace(leaf).lower(lowering_platforms=("cuda",)).as_text()
        assert ("@AllocateBuffer" if devices == 1 else "@CustomSPMDPartitioning") in lowered

"""Each trick on the compiler, with and without: one that makes no difference any more can go."""

import re

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from egd_optax.backend import xla
from egd_optax.backend.unwritten import unwritten

pytestmark = pytest.mark.exact

SHAPE = (64, 48)
ONES = jnp.ones(SHAPE)
MATRIX = "f32[64,48]"
KEY_DATA = jnp.array([1, 2], jnp.uint32)


def compiled_text(fn, *args, **jit_kwargs):
    return jax.jit(fn, **jit_kwargs).lower(*args).compile().as_text()


def computations(text):
    """The instructions of each computation of a program, by its name, and that of the entry."""
    found, entry, name = {}, None, None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.-]+) .*{$", line)
        if head and not line.startswith(" "):
            name = head[2]
            found[name] = []
            entry = name if head[1] else entry
        elif name and line.startswith("  "):
            found[name].append(line)
    return found, entry


def outside_of_loops(text):
    """All that a program computes in every run: what stands in no loop and no conditional."""
    found, entry = computations(text)
    lines, pending = [], [entry]
    while pending:
        own = found[pending.pop()]
        lines += own
        for line in own:
            if " while(" not in line and " conditional(" not in line:
                pending += re.findall(r"(?:calls|to_apply)=%?([\w.-]+)", line)
    return "\n".join(lines)


def scheduled(text):
    """The instructions of the entry of a program, in the order of the schedule.

    Since jaxlib 0.11.2 XLA:CPU calls a small loop, in a computation of its own.
    """
    found, entry = computations(text)
    lines = []
    for line in found[entry]:
        called = re.search(r" call\(.*to_apply=%?([\w.-]+)", line)
        lines += found[called[1]] if called else [line]
    return "\n".join(lines)


def test_the_reader_of_programs_tells_what_stands_in_a_loop():
    def both(x, n):
        return lax.fori_loop(0, n, lambda _, x: jnp.sin(x), jnp.cos(x))

    text = compiled_text(both, ONES, 3)
    assert " sine(" in text
    assert " sine(" not in outside_of_loops(text)
    assert " cosine(" in outside_of_loops(text)


def cond(on, fn, carry, *operands):
    return lax.cond(on, fn, lambda carry, *_: carry, carry, *operands)


def test_run_if_stays_a_branch_under_vmap():
    def always_computed(branch):
        def run(x, on):
            return branch(on, lambda x: jnp.sin(x), x)

        text = compiled_text(jax.vmap(run), ONES, jnp.zeros(len(ONES), bool))
        return " sine(" in outside_of_loops(text)

    assert not always_computed(xla.run_if)
    assert always_computed(cond)


def test_run_if_copies_nothing_that_it_passes_on():
    def copied(branch):
        def run(params, on):
            updates = jax.tree.map(jnp.sin, params)
            updates = branch(on, lambda new, old: jax.tree.map(jnp.add, new, old), updates, params)
            return jax.tree.map(jnp.add, params, updates)

        text = compiled_text(run, [ONES] * 2, True, donate_argnums=0)
        return re.findall(rf"= {re.escape(MATRIX)}\S* copy\(", text)

    assert not copied(xla.run_if)


def test_write_if_keeps_inside_what_does_not_read_its_buffer():
    def run(draw):
        return outside_of_loops(compiled_text(draw, ONES, ONES, jnp.int32(1), False))

    def trick(buffer, x, index, on):
        return xla.write_if(on, index, lambda at: jnp.sin(x + at), buffer)

    def plain(buffer, x, index, on):
        return xla.run_if(on, lambda _, x, at: jnp.sin(x + at), buffer, x, index)

    assert " sine(" not in run(trick)
    assert " sine(" in run(plain)


def test_a_barrier_leaves_alone_what_varies_over_an_axis():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

    def invariant(barrier):
        def run(same):
            varying = lax.axis_index("x")
            return barrier((same, varying))[0]

        spec = jax.sharding.PartitionSpec()
        jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec)(ONES)

    invariant(xla.barrier)
    if jax.__version_info__ < (0, 11):  # later a barrier tells its operands apart by itself
        with pytest.raises(ValueError, match="varies|varying|out_specs"):
            invariant(lax.optimization_barrier)
    else:
        invariant(lax.optimization_barrier)


def test_no_hoist_holds_no_sum_beside_a_loop():
    def run(keep):
        def total(params, updates, xs):
            def body(total, x):
                (leaf, by), x = keep((params, updates), x)
                return total + jnp.sum(jnp.sin(leaf + by) * x), None

            return lax.scan(body, 0.0, xs)[0]

        return outside_of_loops(compiled_text(total, ONES, ONES, jnp.ones((5, *SHAPE))))

    assert " sine(" not in run(xla.no_hoist)
    assert " sine(" in run(lambda fixed, varying: (fixed, varying))


@pytest.mark.parametrize("witness", [jnp.int32(3), jnp.ones(4)], ids=["count", "fitness"])
def test_what_is_impossible_is_no_news_to_the_program_alone(witness):
    def run(never):
        return compiled_text(
            lambda x, w: lax.cond(never(w), lambda: x, lambda: jnp.sin(x)), ONES, witness
        )

    assert not xla.opaque_false(witness)
    assert " conditional(" in run(xla.opaque_false)
    assert " conditional(" not in run(lambda witness: jnp.bool_(False))


def test_what_is_held_in_a_branch_is_not_moved_to_idle_steps():
    def moved_out(hold):
        def total(x, count, due):
            def evolve(total):
                return total + hold(count, lambda: jnp.sin(x), lambda: x)

            def step(total, due):
                return xla.run_if(due, evolve, total), None

            return lax.scan(step, jnp.zeros(SHAPE), due)[0]

        text = compiled_text(total, ONES, jnp.int32(3), jnp.zeros(5, bool))
        return " sine(" in outside_of_loops(text)

    assert not moved_out(xla.hold_in_branch)
    assert moved_out(lambda witness, fn, instead: fn())


def test_a_buffer_that_waits_for_a_witness_is_not_made_before_it():
    def made_first(zeros_in):
        def total(x):
            def member(at, best):
                return jnp.minimum(best, jnp.sum(jnp.sin(x + at)))

            fitness = lax.fori_loop(0, 3, member, jnp.float32(jnp.inf))
            zeros = zeros_in(x, fitness, jnp.float32)
            trips = jnp.where(fitness < 0, 3, 2)
            return lax.fori_loop(0, trips, lambda at, total: total + x * at, zeros)

        before, *_ = scheduled(compiled_text(total, ONES)).split(" while(")
        return re.findall(rf"= {re.escape(MATRIX)}\S* fusion\(", before)

    assert not made_first(xla.zeros_in)
    assert made_first(lambda buffer, witness, dtype: jnp.zeros(SHAPE, dtype))


NUMBERS = np.random.default_rng(0).normal(size=(3, 4000)).astype(np.float32)


def test_a_product_rounded_to_add_is_the_same_fused_or_not():
    def differences(rounded):
        fused = jax.jit(lambda a, b, c: rounded(a * b) + c)(*NUMBERS)
        a, b, c = NUMBERS
        apart = np.asarray(jax.jit(rounded)(a * b)) + c
        return int((np.asarray(fused) != apart).sum())

    assert differences(xla.round_for_fma) == 0
    assert differences(lambda product: product) > 100  # multiplied and added with one rounding


def test_a_product_of_factors_rounded_to_multiply_is_exact():
    def inexact(rounded):
        a, b = (np.asarray(rounded(x)) for x in NUMBERS[:2])
        return int((a.astype(np.float64) * b != a * b).sum())

    assert inexact(xla.round_for_exact_product) == 0
    assert inexact(lambda factor: factor) > 100


def test_round_to_is_no_cast_that_another_one_undoes():
    wide = jnp.asarray(NUMBERS[0])
    text = compiled_text(lambda x: xla.round_to(x, jnp.bfloat16), wide)
    assert " reduce-precision(" in text
    casts = compiled_text(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), wide)
    assert " reduce-precision(" not in casts  # XLA:GPU and XLA:TPU may drop both
    np.testing.assert_array_equal(
        xla.round_to(wide, jnp.bfloat16), wide.astype(jnp.bfloat16).astype(jnp.float32)
    )


def test_a_sum_of_complex_numbers_by_parts_is_rounded_as_that_of_real_ones():
    a, b, c, d = (jnp.asarray(NUMBERS.reshape(6, -1)[at]) for at in range(4))
    leaf, target = jax.lax.complex(a, b), jax.lax.complex(c, d)

    def rounded(add, subtract):
        return jax.jit(lambda leaf, target: add(leaf, subtract(target, leaf)))(leaf, target)

    apart = leaf + np.asarray(target - leaf)
    by_parts = rounded(
        lambda *both: xla.by_parts(jnp.add, *both),
        lambda *both: xla.by_parts(jnp.subtract, *both),
    )
    np.testing.assert_array_equal(by_parts, apart)
    plain = rounded(jnp.add, jnp.subtract)
    if jax.__version_info__ < (0, 12):
        assert (plain != apart).any()  # the target itself
    else:  # XLA does not simplify it any more
        np.testing.assert_array_equal(plain, apart)


def test_an_unwritten_buffer_is_divided_as_its_leaf_is_on_a_gpu():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    leaf = jax.device_put(jnp.ones((8, 4)), jax.sharding.NamedSharding(mesh, jax.P("x")))

    def lowered(fn):
        return jax.jit(fn).trace(leaf).lower(lowering_platforms=("cuda",)).as_text()

    assert "@CustomSPMDPartitioning" in lowered(unwritten)
    plain = lowered(lambda leaf: lax.empty(leaf.shape, leaf.dtype))
    assert "@CustomSPMDPartitioning" not in plain  # as large on every device as the whole leaf
    assert "@AllocateBuffer" in plain


def test_a_barrier_passes_an_array_once():
    """A second one would be held, in bfloat16 on a TPU, even if nobody reads it."""
    traced = jax.jit(lambda x, y: xla.barrier((x, {"again": x, "other": y}, x))).trace(ONES, ONES)
    (equation,) = [one for one in traced.jaxpr.eqns if "barrier" in one.primitive.name]
    assert len(equation.invars) == 2
    x, others, again = jax.jit(lambda x, y: xla.barrier((x, {"other": y}, x)))(ONES, 2 * ONES)
    assert (x == ONES).all()
    assert (again == ONES).all()
    assert (others["other"] == 2 * ONES).all()

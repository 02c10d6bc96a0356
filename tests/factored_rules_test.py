"""Rules of operations: random programs of them give what they give on the formed array."""

from factored_models import data
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from egd_optax import factored
from egd_optax.factored.interpret import _RULES, evaluate
from egd_optax.factored.leaf import Factored, is_factored
from egd_optax.factored.uses import uses_of

RANK = st.integers(1, 3)


def leaf(shape, rank, owners, seed=0):
    """An array with factors; `owners` says of each axis which of the two have it."""
    sides = [
        tuple(side if one in own else 1 for side, own in zip(shape, owners, strict=True))
        for one in "lr"
    ]
    left, right = (data(*side, rank, seed=seed + 1 + at) for at, side in enumerate(sides))
    return Factored(data(*shape, seed=seed), left, right, (0,))


@st.composite
def programs(draw):
    """The shape of an array, who has its axes, and operations that are possible one by one."""
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=2, max_size=4))
    owners = draw(
        st.lists(
            st.sampled_from(["l", "r", "l", "r", "lr"]), min_size=len(shape), max_size=len(shape)
        )
    )
    steps, now = [], tuple(shape)
    for _ in range(draw(st.integers(1, 5))):
        step = draw(st.sampled_from(list(STEPS)))
        made = STEPS[step](draw, now)
        if made is None:
            continue
        after = jax.eval_shape(made, jax.ShapeDtypeStruct(now, jnp.float32)).shape
        if 1 <= len(after) <= 5 and np.prod(after) <= 2000:
            steps.append((step, made))
            now = after
    summed = draw(st.lists(st.booleans(), min_size=len(now), max_size=len(now)))
    return tuple(shape), owners, steps, now, [at for at, on in enumerate(summed) if on]


def axis_of(draw, shape):
    return draw(st.integers(0, len(shape) - 1))


def transpose(draw, shape):
    order = draw(st.permutations(range(len(shape))))
    return lambda x: jnp.transpose(x, order)


def split_axis(draw, shape):
    axis = axis_of(draw, shape)
    if shape[axis] not in (4, 6):
        return None
    return lambda x: x.reshape(*shape[:axis], 2, shape[axis] // 2, *shape[axis + 1 :])


def merge_axes(draw, shape):
    axis = axis_of(draw, shape)
    if axis + 1 == len(shape):
        return None
    sides = *shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :]
    return lambda x: x.reshape(sides)


def cut(draw, shape):
    starts = [draw(st.integers(0, side - 1)) for side in shape]
    strides = [draw(st.integers(1, 2)) for _ in shape]
    return lambda x: lax.slice(x, starts, shape, strides)


def cut_dynamically(draw, shape):
    sizes = [draw(st.integers(1, side)) for side in shape]
    starts = [jnp.int32(draw(st.integers(-1, 4))) for _ in shape]
    return lambda x: lax.dynamic_slice(x, starts, sizes)


def flip(draw, shape):
    axis = axis_of(draw, shape)
    return lambda x: jnp.flip(x, axis)


def scale(draw, shape):
    axis, by = axis_of(draw, shape), draw(st.sampled_from([-1.5, 2.0]))
    along = 1 + jnp.arange(shape[axis], dtype=jnp.float32)
    along = along.reshape([-1 if at == axis else 1 for at in range(len(shape))])
    return draw(
        st.sampled_from([lambda x: by * x, lambda x: x / by, lambda x: -x, lambda x: x * along])
    )


def take(draw, shape):
    axis = axis_of(draw, shape)
    at = jnp.array(draw(st.lists(st.integers(-1, 7), min_size=1, max_size=4)))
    mode = draw(st.sampled_from(["clip", "wrap"]))
    fill = draw(st.booleans())
    if fill:
        return lambda x: jnp.take(x, at, axis, mode="fill", fill_value=0.5)
    return lambda x: jnp.take(x, at, axis, mode=mode)


def join(draw, shape):
    axis = axis_of(draw, shape)
    return lambda x: jnp.concatenate([x, 2 * x], axis)


def add(draw, shape):
    axis = axis_of(draw, shape)
    other = data(*shape, seed=9)
    return draw(
        st.sampled_from(
            [
                lambda x: x + jnp.flip(x, axis),
                lambda x: 3 * x - jnp.flip(x, axis),
                lambda x: x + other,
                lambda x: other - x,
                lambda x: x + 1.0,
            ]
        )
    )


def piece(draw, shape):
    axis, at = axis_of(draw, shape), draw(st.integers(0, 1))
    if shape[axis] < 2:
        return None
    return lambda x: jnp.split(x, [1], axis)[at]


def spread(draw, shape):
    axis = draw(st.integers(0, len(shape)))
    side = draw(st.integers(1, 2))
    sides = *shape[:axis], side, *shape[axis:]
    return lambda x: jnp.broadcast_to(jnp.expand_dims(x, axis), sides)


def total(draw, shape):
    axis = axis_of(draw, shape)
    return (lambda x: jnp.sum(x, axis)) if len(shape) > 1 else None


def squeeze(draw, shape):
    axis = axis_of(draw, shape)
    if shape[axis] != 1 or len(shape) == 1:
        return None
    return lambda x: jnp.squeeze(x, axis)


def looped(draw, shape):
    """Over the first axis, as over layers."""
    by = data(*shape[1:], seed=5)
    if len(shape) < 2:
        return None
    return lambda x: lax.scan(lambda carry, row: (carry, row * 2 + by), 0, x)[1]


def both(draw, shape):
    if len(shape) != 2:
        return None
    return draw(st.sampled_from([lambda x: x @ x.T, lambda x: x.T @ x, lambda x: 2 * x @ x.T]))


def chosen(draw, shape):
    on = jnp.bool_(draw(st.booleans()))
    return lambda x: lax.cond(on, lambda x: 2 * x, lambda x: -x, x)


def converted(draw, shape):
    return jax.checkpoint(lambda x: jax.jit(lambda x: x.astype(jnp.float32) * 2)(x))


def formed_somewhere(draw, shape):
    return lambda x: jnp.round(4 * x) / 4


STEPS = {
    fn.__name__: fn
    for fn in (
        transpose, split_axis, merge_axes, cut, cut_dynamically, flip, scale, take, join, add,
        piece, spread, total, squeeze, looped, both, chosen, converted, formed_somewhere,
    )
}  # fmt: skip


@pytest.mark.wide
@given(program=programs(), rank=RANK)
@settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
def test_a_random_program_gives_what_it_gives_on_the_formed_array(program, rank):
    shape, owners, steps, end, summed = program
    free = [side for at, side in enumerate(end) if at not in summed]
    x = data(*(end[at] for at in summed), 3, seed=4)

    def fn(array):
        for _, step in steps:
            array = step(array)
        product = jnp.tensordot(array, x, (summed, list(range(len(summed)))))
        assert product.shape == (*free, 3)
        return product

    one = leaf(shape, rank, owners)
    expected = np.asarray(fn(one.form()))
    found = np.asarray(evaluate(fn, one))
    scale = 1 + np.abs(expected).max()
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-5)


@pytest.mark.crossed(3)
@pytest.mark.parametrize("rank", [1, 2, 6])
@pytest.mark.parametrize(
    "equation",
    ["ab,bc->ac", "ba,bc->ac", "xab,bc->xac", "eab,ebc->eac", "aeb,ebc->eca", "abc,bcd->ad",
     "ab,cb->ac", "abx,bcx->xac", "ab,bc->bac", "ab,cd->acbd"],
)  # fmt: skip
@pytest.mark.parametrize("side", [0, 1])
def test_products_over_any_axes_and_on_either_side(equation, side, rank):
    names = equation.split("->")[0].split(",")
    sizes = dict(zip("abcdex", (4, 5, 6, 3, 2, 7), strict=True))
    shapes = [[sizes[name] for name in one] for one in names]
    own = shapes[side]
    other = data(*shapes[1 - side], seed=8)
    for owners in (
        "l" * (len(own) - 1) + "r",
        "r" + "l" * (len(own) - 1),
        ["lr"] + ["l"] * (len(own) - 2) + ["r"],
    ):
        one = leaf(own, rank, list(owners))

        def fn(array):
            pair = (array, other) if side == 0 else (other, array)
            return jnp.einsum(equation, *pair, precision="highest")

        uses = uses_of(fn, one)
        assert uses
        assert not any(use.formed for use in uses)
        np.testing.assert_allclose(evaluate(fn, one), fn(one.form()), rtol=1e-4, atol=1e-4)


@pytest.mark.crossed(3)
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"window_strides": (1, 1), "padding": "SAME"},
        {"window_strides": (2, 1), "padding": "VALID", "rhs_dilation": (1, 2)},
        {"window_strides": (1, 1), "padding": [(2, 1), (0, 3)], "lhs_dilation": (2, 2)},
        {"window_strides": (1, 2), "padding": "SAME",
         "dimension_numbers": ("NHWC", "HWIO", "NHWC")},
        {"window_strides": (1, 1), "padding": "VALID",
         "dimension_numbers": ("CHWN", "IHWO", "HWNC")},
    ],
)  # fmt: skip
def test_convolutions_have_one_kernel_for_all_members(options, rank):
    numbers = options.get("dimension_numbers", ("NCHW", "OIHW", "NCHW"))
    sides = {"N": 2, "C": 3, "H": 7, "W": 6, "I": 3, "O": 5}
    x = data(*(sides[name] for name in numbers[0]), seed=2)
    kernel = [sides[name] if name in "IO" else 3 for name in numbers[1]]
    one = leaf(kernel, rank, ["r" if name == "O" else "l" for name in numbers[1]])
    fn = lambda w: lax.conv_general_dilated(x, w, **options)  # noqa: E731
    assert not any(use.formed for use in uses_of(fn, one))
    np.testing.assert_allclose(evaluate(fn, one), fn(one.form()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_of_two_leaves_stays_factored(transposed):
    first, second = leaf((6, 5), 1, "lr"), leaf((7, 5) if transposed else (5, 7), 2, "lr", seed=4)
    x = data(3, 6, seed=8)

    def fn(first, second):
        return x @ (first @ (second.T if transposed else second))

    assert not any(use.formed for use in uses_of(fn, first, second))
    expected = fn(first.form(), second.form())
    np.testing.assert_allclose(evaluate(fn, first, second), expected, rtol=1e-4, atol=1e-4)


def test_rounding_sees_the_formed_matrix():
    one = leaf((6, 5), 1, "lr")
    for fn in (jnp.round, lambda w: w.astype(jnp.int8), lambda w: w.astype(jnp.float8_e4m3fn)):
        (use,) = uses_of(lambda w, fn=fn: fn(w), one)
        assert use.formed
        np.testing.assert_array_equal(evaluate(fn, one), fn(one.form()))


def test_what_is_formed_is_named_with_its_line():
    one = leaf((6, 5), 1, "lr")
    fn = lambda w: jnp.ones(6) @ lax.sort(w) + jnp.ones((2, 6)) @ w  # noqa: E731
    (formed, product) = uses_of(fn, one)
    assert (formed.primitive, formed.formed, formed.shape) == ("sort", True, (6, 5))
    assert "factored_rules_test.py" in formed.where
    assert (product.primitive, product.formed, product.rows) == ("dot_general", False, 2)


def test_a_rule_of_ones_own_is_used():
    one = leaf((6, 5), 1, "lr")
    fn = lambda w: jnp.ones((2, 6)) @ jnp.pad(w, ((0, 0), (1, 2)))  # noqa: E731
    assert any(use.formed for use in uses_of(fn, one))

    @factored.rule("pad")
    def pad(equation, leaf, value):
        config = equation.params["padding_config"]

        def padded(part):
            own = [
                pads if side != 1 else (0, 0, 0)
                for pads, side in zip(config, part.shape, strict=True)
            ]
            return lax.pad(part, value, own)

        return [leaf.each(padded)] if not is_factored(value) else None

    try:
        assert not any(use.formed for use in uses_of(fn, one))
        np.testing.assert_allclose(evaluate(fn, one), fn(one.form()), rtol=1e-5)
    finally:
        del _RULES["pad"]


def test_a_rule_needs_names_of_primitives():
    with pytest.raises(TypeError, match="`primitives` must be names"):
        factored.rule(jnp.cumsum)
    with pytest.raises(TypeError, match="`primitives` must be names"):
        factored.rule()

"""The public surface: which arguments there are, and that operators are plain values."""

import copy
import dataclasses
import inspect
import itertools
from pathlib import Path
import pickle
import re

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np
import optax
import pytest

import egd_optax
from egd_optax import Execution, accept, egd, evolve, noise, recombine, sigma
from egd_optax.wrappers import STATIC_ARGS

PACKAGE = Path(egd_optax.__file__).parent
KEYWORDS = [
    "evolve_every",
    "window",
    "population_size",
    "generations",
    "sigma",
    "noise",
    "antithetic",
    "recombine",
    "es_optimizer",
    "accept",
    "reset_base",
    "mutable",
    "bounds",
    "refine",
    "aux",
    "execution",
    "key",
]
MESH = jax.make_mesh((8,), ("pop",), axis_types=(AxisType.Auto,))


def halves(fitness):
    return jnp.full(fitness.shape, 0.5)


# Each in its own way unlike the others; written as users write them.
WRITTEN = [
    "noise.gaussian()",
    "noise.gaussian(relative=False)",
    "noise.gaussian(min_scale=0.5)",
    "noise.low_rank()",
    "noise.low_rank(rank=3)",
    "noise.low_rank(relative=False)",
    "noise.low_rank(min_scale=0.5)",
    "noise.rademacher()",
    "noise.rademacher(relative=False)",
    "noise.lattice()",
    "noise.lattice(low=-1, high=1)",
    "noise.lattice(steps_per_sigma=10.0)",
    "noise.lattice(relative=False)",
    "noise.separable()",
    "noise.separable(learning_rate=0.5)",
    "noise.separable(relative=True)",
    "sigma.one_fifth(start=0.1)",
    "sigma.one_fifth(start=0.1, growth=2.0)",
    "sigma.path_length(start=0.1)",
    "recombine.mean()",
    "recombine.mean(elite_fraction=0.5)",
    "recombine.softmax()",
    "recombine.softmax(temperature=0.5)",
    "recombine.softmax(elite_fraction=0.5)",
    "recombine.centered_rank()",
    "recombine.elite_weights(halves)",
    "recombine.elite_weights(halves, elite_fraction=0.5)",
    "recombine.elite_weights(halved)",
    "recombine.member_weights(halves)",
    "recombine.member_weights(halved)",
    "recombine.shuffled(recombine.centered_rank())",
    "recombine.shuffled(recombine.mean())",
    "accept.best()",
    "accept.improved()",
    "accept.always()",
    "Execution()",
    'Execution(memory="replay")',
    "Execution(candidate_batch_size=4)",
    'Execution(axis_name="data")',
    'Execution(axis_name=("data", "more"))',
    'Execution(population_axis="pop")',
    'Execution(population_axis="pop", mesh=mesh)',
]
# The only names that an operator may print beside its settings.
NAMES = {name: getattr(egd_optax, name) for name in egd_optax.__all__}


class Function:
    """A function that prints as its name."""

    def __init__(self, name):
        self.name = name

    def __call__(self, fitness):
        return halves(fitness)

    def __repr__(self):
        return self.name


FUNCTIONS = {"halves": Function("halves"), "halved": Function("halved")}


def made(text):
    # What a mesh prints does not tell its devices, so that only a stand-in can read it.
    values = {"mesh": MESH, "Mesh": lambda **_: MESH, "Auto": AxisType.Auto}
    return eval(text, {**NAMES, **FUNCTIONS, **values})


def keywords(fn):
    kind = inspect.Parameter.KEYWORD_ONLY
    return [each for each in inspect.signature(fn).parameters.values() if each.kind == kind]


written = pytest.mark.parametrize("text", WRITTEN)


def test_the_arguments_of_evolve():
    base, *rest = inspect.signature(evolve).parameters.values()
    assert base.name == "base"
    assert base.kind == inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert rest == keywords(evolve)
    assert [each.name for each in rest] == KEYWORDS
    assert len(rest) == 17


def test_the_arguments_of_egd():
    parameters = inspect.signature(egd).parameters
    own = ["learning_rate", "momentum", "nesterov", "weight_decay", "accumulator_dtype"]
    assert list(parameters) == own + KEYWORDS
    assert len(parameters) == 22
    assert [each.name for each in keywords(egd)] == own[3:] + KEYWORDS


def test_the_keywords_of_evolve_stand_in_egd():
    # Names, kinds, defaults and annotations, in order.
    assert keywords(egd)[-len(KEYWORDS) :] == keywords(evolve)
    for each in keywords(evolve):
        assert each.annotation is not inspect.Parameter.empty
        assert each.default is not inspect.Parameter.empty


def test_defaults_are_those_of_the_operators():
    defaults = {each.name: each.default for each in keywords(evolve)}
    assert defaults["noise"] == noise.gaussian()
    assert defaults["recombine"] == recombine.mean()
    assert defaults["accept"] == accept.best()
    assert defaults["execution"] == Execution()


def test_what_the_package_exports():
    assert sorted(egd_optax.__all__) == [
        "CycleInfo", "EvolveState", "Execution", "accept", "ask_tell", "bind_value_fn", "callback",
        "checkpoint", "diagnose", "egd", "evolve", "execution", "factored", "is_due", "noise",
        "presets", "recombine", "sigma", "with_frozen",
    ]  # fmt: skip
    assert all(hasattr(egd_optax, name) for name in egd_optax.__all__)
    assert STATIC_ARGS == (
        "population_size", "generations", "mutable", "reset_base", "refine", "window"
    )  # fmt: skip
    assert set(STATIC_ARGS) < set(KEYWORDS)


def test_an_execution_has_these_fields():
    names = ["memory", "evaluate", "candidate_batch_size", "axis_name", "population_axis", "mesh"]
    assert [field.name for field in dataclasses.fields(Execution)] == names


@written
def test_an_operator_prints_as_it_is_written(text):
    operator = made(text)
    again = made(repr(operator))
    assert again == operator
    assert type(again) is type(operator)
    assert repr(again) == repr(operator)
    assert repr(operator).split("(")[0] == text.split("(")[0]


@written
def test_equal_settings_are_equal_and_hash_alike(text):
    one, other = made(text), made(text)
    assert one is not other
    assert one == other
    assert hash(one) == hash(other)
    assert len({one, other}) == 1


def test_other_settings_and_other_kinds_are_not_equal():
    for one, other in itertools.combinations(WRITTEN, 2):
        assert made(one) != made(other), (one, other)
    assert len({made(text) for text in WRITTEN}) == len(WRITTEN)
    # The same numbers, of another kind or of none.
    half = recombine.mean(0.5)
    assert half != (0.5,)
    assert half != 0.5
    assert noise.gaussian() != (True, 1e-3)
    assert recombine.elite_weights(halves, 0.25) != (halves, 0.25)
    assert recombine.centered_rank() != ()
    assert accept.best() != accept.improved()
    assert Execution() != ("host", 1, None, None, None)

    @dataclasses.dataclass(frozen=True)
    class Mean(recombine.Recombine):
        elite_fraction: float

    assert half != Mean(0.5)


@written
def test_settings_cannot_be_changed_but_replaced(text):
    operator = made(text)
    for field in dataclasses.fields(operator):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(operator, field.name, None)
    assert operator == made(text)
    assert dataclasses.replace(operator) == operator


@pytest.mark.parametrize(
    "operator", [noise.low_rank(2), recombine.mean(0.5), accept.best(), Execution()], ids=repr
)
def test_operators_are_copied_and_pickled(operator):
    assert copy.deepcopy(operator) == operator
    assert pickle.loads(pickle.dumps(operator)) == operator


@written
def test_an_operator_is_neither_called_nor_taken_apart(text):
    operator = made(text)
    assert not callable(operator)
    assert not isinstance(operator, tuple)
    assert jax.tree.leaves(operator) == [operator]
    assert jax.tree.structure(operator) == jax.tree.structure(0)


@written
def test_an_operator_is_a_static_argument_of_jit(text):
    traces = []

    def traced(x, operator):
        traces.append(operator)
        return x

    traced = jax.jit(traced, static_argnums=1)
    traced(1.0, made(text))
    traced(2.0, made(text))
    assert traces == [made(text)]


@pytest.mark.parametrize(
    "module", [noise, sigma, recombine, accept], ids=["noise", "sigma", "recombine", "accept"]
)
def test_every_operator_is_written_above(module):
    bases = {noise: noise.Noise, sigma: sigma.Sigma, recombine: recombine.Recombine}
    base = bases.get(module, accept.Accept)
    name = module.__name__.split(".")[-1]
    makers = {
        maker
        for maker, fn in inspect.getmembers(module, inspect.isfunction)
        if fn.__module__.startswith(module.__name__) and not maker.startswith("_")
        and inspect.signature(fn).return_annotation is base
    }  # fmt: skip
    assert makers == {text.split("(")[0].split(".")[1] for text in WRITTEN if text.startswith(name)}


def test_both_optimizers_take_what_an_operator_prints():
    for text in WRITTEN:
        operator = made(text)
        where = "execution" if isinstance(operator, Execution) else text.split(".")[0]
        egd(0.1, **{where: made(repr(operator))})
        evolve(optax.sgd(0.1), **{where: made(repr(operator))})


def test_settings_from_numpy_become_numbers_of_python():
    for ours, numpys in (
        (recombine.mean(0.5), recombine.mean(np.array(0.5))),
        (recombine.softmax(0.25), recombine.softmax(np.float32(0.25))),
        (noise.low_rank(2), noise.low_rank(np.int64(2))),
        (noise.gaussian(min_scale=0.5), noise.gaussian(min_scale=np.float32(0.5))),
        (Execution(candidate_batch_size=2), Execution(candidate_batch_size=np.int32(2))),
    ):
        assert ours == numpys
        assert hash(ours) == hash(numpys)
        assert repr(ours) == repr(numpys)


@pytest.mark.parametrize("name", ["noise", "recombine", "accept"])
def test_what_has_the_methods_of_an_operator_is_told_to_be_a_subclass(name):
    class Lookalike:
        def draw(self, key, std, leaf):
            return leaf

        def weights(self, fitness, support):
            return fitness

        def choose(self, key, parent, best, child, state):
            return accept.CHILD, state

    with pytest.raises(TypeError, match=f"`{name}` must be an operator, got .*Lookalike"):
        evolve(optax.sgd(0.1), **{name: Lookalike()})


@pytest.mark.parametrize(
    ("settings", "error"), [({"relative": "yes"}, TypeError), ({"min_scale": -1.0}, ValueError)]
)
def test_the_scale_of_a_noise_of_ones_own_is_checked(settings, error):
    kind = type("Own", (noise.Noise,), settings)
    (name,) = settings
    with pytest.raises(error, match=f"`{name}` must be"):
        evolve(optax.sgd(0.1), noise=kind())


def test_a_list_of_weights_is_taken():
    rule = recombine.elite_weights(lambda fitness: [0.75, 0.25])
    tx = evolve(optax.sgd(0.1), evolve_every=1, recombine=rule)
    params = jnp.ones(3)
    _, state = tx.update(params, tx.init(params), params, value_fn=jnp.sum)
    assert int(state.cycle) == 1


@pytest.mark.wide
def test_sizes_from_numpy_give_the_program_of_python_ints():
    def program(size):
        with jax.enable_x64(True):
            tx = egd(0.1, evolve_every=1, population_size=size(4), generations=size(2))
            params = jnp.ones(3, jnp.float32)
            step = lambda state: tx.update(params, state, params, value_fn=jnp.sum)  # noqa: E731
            return str(jax.make_jaxpr(step)(tx.init(params)))

    assert program(np.int64) == program(int)


def test_names_of_jax_that_may_move_are_taken_from_one_module():
    from_jax = re.compile(r"\bjax\.(?:_src|experimental|extend|interpreters)\b")
    sources = [path for path in PACKAGE.rglob("*.py") if path.name != "_jax.py"]
    assert len(sources) > 20
    assert not [path.name for path in sources if from_jax.search(path.read_text())]

"""`host_value_fn`: a `value_fn` that calls a Python function."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
import functools
import logging
import threading
from typing import Any

import jax
import numpy as np

from egd_optax._checks import check_aux, check_choice, check_flag, check_function, check_size
from egd_optax.callback.call import Form, to_python
from egd_optax.core import auxiliary
from egd_optax.core.fitness import fitness_dtype

logger = logging.getLogger("egd_optax.callback")


def host_value_fn(
    fn: Callable[..., Any],
    *,
    batched: bool = False,
    workers: int | None = None,
    on_error: str = "worst",
    aux: Any = None,
) -> Callable[..., Any]:
    """Makes a `value_fn`, or an `accept_value_fn`, of a plain Python function.

    It runs wherever a `value_fn` does: in `jax.jit` and `lax.scan`, and outside of them. It runs
    in batches, over a mesh, with sharded parameters, in several processes, and in `jax.shard_map`
    over all axes of its mesh. It does not run in a `jax.vmap` of the whole optimizer: use
    `jax.lax.map`, which takes turns.
    Make it once, outside of the training loop: outside of `jax.jit` a cycle is compiled for each.

    `fn` is called once for each of the `state.info.evaluations` of a cycle, on however many
    devices. All devices get the same result, even if `fn` is a noisy simulator.
    `accept_value_fn` is called two or three times more. In `jax.jit` over a mesh the first device
    calls, in its process, with the whole of all arrays. In `jax.shard_map` each device calls for
    its own members and samples. The first device calls for evaluations that are the same on all.
    With `check_vma=False` and in `jax.pmap` JAX does not know which are the same. One device then
    calls along `population_axis`, and along other axes each device calls for itself.

    Args:
        fn: maps parameters to a real scalar, lower is better; +inf or NaN counts as worst. It
            also gets those arguments of `update` that its signature names. Arrays, `generation`
            among them, are NumPy's, in the structure of the parameters. They have the dtypes
            that they have in JAX (those of ml_dtypes below float32), and cannot be written to.
            A typed key comes as its data, and all other arguments as they are. `fn` must not call
            JAX. It could wait forever for a thread that waits for `fn`.
        batched: whether `fn` evaluates all members that come together in one call. Every leaf of
            the parameters then has a leading axis `[members]`, and `fn` returns a vector of as
            many. Arguments have this axis only if a `jax.vmap` mapped `value_fn` over them.
        workers: how many members that come together are evaluated at the same time, in threads,
            as by a `concurrent.futures.ThreadPoolExecutor(workers)`; None for one after another.
            Threads pay if `fn` waits, for a process or a device. They also pay if it leaves the
            interpreter, as NumPy does.
        on_error: what to do if `fn` raises an `Exception`. "worst": the member, or all of the
            batch, counts as worst. The logger "egd_optax.callback" warns with the error and its
            traceback. "raise": the step raises it. JAX makes a
            `jax.errors.JaxRuntimeError` of it that holds the traceback. In `jax.shard_map` and
            `jax.pmap` over several devices, and on accelerators, devices that did not fail wait
            for those that did. XLA:CPU then logs the error and, after a minute, ends the process.
        aux: an example of the aux, if `fn` returns a tuple (fitness, aux); None if it returns the
            fitness alone. Pass arrays or numbers, or their shapes and dtypes. Pass the same to
            `evolve`, whose `state.info.aux` keeps it. The aux is zero if `fn` raises. If
            `batched`, the aux that `fn` returns has a leading axis `[members]`.

    Returns:
        A function of parameters and keyword arguments, with the signature of `fn`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range, or has no effect because of another. Whatever
            `on_error` is, the step raises, as "raise" does, if `fn` returns no real number.

    Cost:
        A member moves to the host for every call. It crosses the link of an accelerator. On CPU it
        is copied in pieces of 96 KiB, about 10 ms for 10 MB. With
        `Execution(candidate_batch_size=...)` that many members come together. With
        `population_axis` in `jax.jit` these are as many as there are devices times that.
        Otherwise members come one by one, and `workers` have nothing to share.
        JAX dispatches a program that calls back in another way, which takes longer. So a step
        without a cycle takes longer too, see the column "host function" of `docs/results/costs.md`.
        Decide in the loop, `evolve=is_due(step, evolve_every)`. A step without a cycle then calls
        nothing.

    Example:
        >>> import jax.numpy as jnp, numpy as np, optax
        >>> from egd_optax import Execution, callback, evolve
        >>> def spread(params, target):
        ...   return float(np.ptp(np.sort(params["w"]) - target))
        >>> tx = evolve(optax.sgd(0.1), evolve_every=1, sigma=0.3,
        ...             execution=Execution(candidate_batch_size=4))
        >>> value_fn = callback.host_value_fn(spread, workers=4)
        >>> params = {"w": jnp.linspace(1.0, 2.0, 8)}
        >>> no_gradient, target = {"w": jnp.zeros(8)}, np.linspace(0.0, 3.0, 8)
        >>> updates, state = tx.update(
        ...   no_gradient, tx.init(params), params, value_fn=value_fn, target=target)
        >>> bool(state.info.best_fitness < state.info.parent_fitness)
        True

        A simulator returns the number of its steps with the fitness:

        >>> def simulated(params):
        ...   return float(np.abs(params["w"]).max()), {"steps": 100}
        >>> tx = evolve(optax.sgd(0.1), evolve_every=1, sigma=0.3, aux={"steps": 0})
        >>> value_fn = callback.host_value_fn(simulated, aux={"steps": 0})
        >>> updates, state = tx.update(no_gradient, tx.init(params), params, value_fn=value_fn)
        >>> int(state.info.aux.total["steps"]) == 100 * int(state.info.evaluations)
        True
    """
    check_function("fn", fn, "of the parameters")
    check_flag("batched", batched)
    check_choice("on_error", on_error, ("worst", "raise"))
    check_aux(aux)
    if workers is not None:
        workers = check_size("workers", workers)
        if batched:
            raise ValueError(
                f"`workers` must be left out with `batched=True`, got {workers}: there is one "
                "call for all members. Let `fn` divide them."
            )
    answers = _Answers(fn, batched, workers, on_error, aux)
    call = to_python(answers.answer, answers.shapes)
    structure = jax.tree.structure(aux)

    @functools.wraps(fn)
    def value_fn(params: Any, **kwargs: Any) -> Any:
        value, *beside = call((params, kwargs))
        return value if aux is None else (value, jax.tree.unflatten(structure, beside))

    return value_fn


class _Answers:
    """The answers of the function for some members; its settings are those of `host_value_fn`.

    Attributes:
        free: how many more calls may run, of all devices together.
    """

    def __init__(self, *settings: Any) -> None:
        """Keeps the settings."""
        self.settings = settings
        self.fn, self.batched, self.workers, self.on_error, self.aux = settings
        self.free = threading.Semaphore(self.workers or 1)

    def __reduce__(self) -> Any:
        """The state that is sent to another process: a semaphore cannot be."""
        return _Answers, self.settings

    def shapes(self) -> list[jax.ShapeDtypeStruct]:
        """The shapes and dtypes of the fitness, and of the leaves of the aux."""
        beside = jax.tree.leaves(auxiliary.shapes_of(self.aux))
        return [jax.ShapeDtypeStruct((), fitness_dtype()), *beside]

    def answer(
        self, counted: np.ndarray, arrays: dict[int, np.ndarray], form: Form
    ) -> list[np.ndarray]:
        """The results for all members; those that do not count are the worst."""
        results = self._nothing(counted.size)
        members = np.flatnonzero(counted)
        if members.size:
            answer = self._together if self.batched else self._each
            with np.errstate(over="ignore"):  # a value too large for float32 is infinite
                for result, leaf in zip(results, answer(members, arrays, form), strict=True):
                    result[members] = leaf
        return results

    def _together(
        self, members: np.ndarray, arrays: dict[int, np.ndarray], form: Form
    ) -> list[np.ndarray]:
        of_params = form.structure.children()[0].num_leaves

        def of_members(at: int, leaf: np.ndarray) -> np.ndarray:
            if at in form.own:
                own: np.ndarray = leaf[members]
                return own
            # A leaf that does not mutate is the same in all members.
            return np.broadcast_to(leaf, (members.size, *leaf.shape)) if at < of_params else leaf

        params, kwargs = form.filled({at: of_members(at, leaf) for at, leaf in arrays.items()})
        return self._tried(members.size, params, **kwargs)

    def _each(
        self, members: np.ndarray, arrays: dict[int, np.ndarray], form: Form
    ) -> list[np.ndarray]:
        def one(member: int) -> list[np.ndarray]:
            own = {at: x[member, ...] if at in form.own else x for at, x in arrays.items()}
            params, kwargs = form.filled(own)
            return self._tried(1, params, **kwargs)

        if self.workers is None or members.size == 1:
            found = [one(member) for member in members]
        else:
            with ThreadPoolExecutor(self.workers) as pool:
                found = list(pool.map(one, members))
        return [np.concatenate(leaves) for leaves in zip(*found, strict=True)]

    def _tried(self, count: int, *args: Any, **kwargs: Any) -> list[np.ndarray]:
        """The results of `fn` for `count` members; the worst if it fails and may fail."""
        try:
            with self.free:
                result = self.fn(*args, **kwargs)
        except Exception:
            if self.on_error == "raise":
                raise
            logger.warning("`fn` of `host_value_fn` failed: counts as worst.", exc_info=True)
            return self._nothing(count)
        members = (count,) if self.batched else ()
        beside: list[np.ndarray] = []
        if self.aux is not None:
            result, beside = auxiliary.split_off(
                result, auxiliary.shapes_of(self.aux), np.asarray, name="fn",
                casting="same_kind", advice="pass an example of what it returns", members=members,
            )  # fmt: skip
        found = [_checked(result, members), *beside]
        return found if self.batched else [leaf[None] for leaf in found]

    def _nothing(self, count: int) -> list[np.ndarray]:
        value, *beside = (np.zeros((count, *leaf.shape), leaf.dtype) for leaf in self.shapes())
        return [np.full_like(value, np.inf), *beside]


def _checked(result: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The real numbers that `fn` returned; raises if they are none, or have another shape."""
    if np.ma.is_masked(result):  # an undefined metric; the number behind the mask means nothing
        result = np.ma.filled(np.ma.asarray(result, np.float64), np.nan)
    values = np.asarray(result)
    what = "a vector of one real number a member" if shape else "one real number"
    if values.dtype.kind not in "biuf" or (values.dtype.kind == "f" and values.itemsize < 4):
        raise TypeError(
            f"`fn` must return {what} of at least float32, got {result!r}: return the metric alone."
        )
    if values.shape != shape:
        raise ValueError(
            f"`fn` must return {what}, shape {shape}, got shape {values.shape}: reduce it, for "
            "example with `np.mean`, to what is to be small."
        )
    return values

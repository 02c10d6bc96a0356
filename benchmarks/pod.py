"""Training on many devices, laid out in four ways: `python -m benchmarks.pod`.

The same file runs on one machine and, started on every host, on a pod, where the processes find
each other. The README beside this file has the launch lines.

data: every device has a share of the samples, and all parameters.
population: in a cycle the devices along "pop" also divide the members.
fsdp: the devices along "fsdp" also divide the parameters.
all-three: all of that.

Every layout trains the same network on the same samples, so the parameters must agree. Then a
step without a cycle is timed over that of the base optimizer, and a cycle over its forward passes.
"""

import argparse
import functools
import hashlib
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import optax

from benchmarks import measure, models
from egd_optax import Execution, evolve, is_due

LAYOUTS = {
    "data": ("data",),
    "population": ("pop", "data"),
    "fsdp": ("data", "fsdp"),
    "all-three": ("pop", "data", "fsdp"),
}
BASES = {"adamw": lambda: optax.adamw(1e-3), "sgd": lambda: optax.sgd(1e-2, momentum=0.9)}
SAVED = ("base", "parameters", "samples", "population", "every", "steps")
TOLERANCE = 2e-5  # between layouts: the largest difference over the largest entry of a leaf


def main() -> None:
    """Trains and times in every layout; process 0 alone prints and saves."""
    options = arguments()
    connect(options)
    is_first = jax.process_index() == 0
    say = functools.partial(print, flush=True) if is_first else lambda *_, **__: None
    devices, processes = jax.device_count(), jax.process_count()
    say(f"{devices} devices ({jax.devices()[0].device_kind}) of {processes} processes")
    reference, rows = None, []
    for name in options.layout:
        sizes = axis_sizes(LAYOUTS[name], devices)
        if sizes is None:
            say(f"\n{name}: left out, {devices} devices make no mesh with {LAYOUTS[name]}")
            continue
        run = train(layout := Layout(sizes, options))
        about = {"layout": name, "mesh": sizes, **compared(run, reference := reference or run)}
        say("\n{layout} {mesh}\n  parameters {params}, loss {loss:.7f}".format(**about))
        say("  differ by {params_differ:.0e}, fitness by {fitness_differs:.0e}".format(**about))
        for timing in timed(layout):
            rows.append({**about, **timing})
            say("  {what}: {seconds[median]:.1e} s, over {over}: ".format(**timing), end="")
            say("{median:.2f} ({low:.2f} to {high:.2f})".format(**timing["ratio"]))
    if is_first:
        about = {name: getattr(options, name) for name in SAVED}
        name = f"pod_{jax.devices()[0].platform}"
        say(f"\n{measure.save(name, rows, processes=processes, **about)}")
    differ = np.max([row["params_differ"] for row in rows], initial=0)
    assert differ <= TOLERANCE, f"the layouts trained different parameters, by {differ:.0e}"


def arguments() -> argparse.Namespace:
    """The options, the same in all processes but for --process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pod", description=__doc__)
    parser.add_argument("--layout", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--base", choices=BASES, default="adamw")
    parser.add_argument("--parameters", type=float, default=1e7)
    parser.add_argument("--samples", type=int, default=8, help="of a batch, for every device")
    parser.add_argument("--population", type=int, default=16)
    parser.add_argument("--every", type=int, default=10, help="steps between cycles")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--quick", action="store_true", help="a small network, to try it")
    parser.add_argument("--coordinator", help="by hand: address and free port of process 0")
    parser.add_argument("--processes", type=int, help="by hand: how many")
    parser.add_argument("--process", type=int, help="by hand: the number of this one, from 0")
    options = parser.parse_args()
    if options.quick:
        options.parameters, options.samples = 5e4, 2
    return options


def connect(options: argparse.Namespace) -> None:
    """Joins the other processes, where there are any; before jax is asked for a device."""
    try:  # what is not given is asked of Slurm, Open MPI, Kubernetes or Cloud TPU
        jax.distributed.initialize(options.coordinator, options.processes, options.process)
    except ValueError as error:
        # There is only this process. Nothing else that is wrong must pass for that, or
        # each host of a pod would train by itself.
        if "coordinator_address should be defined" not in str(error):
            raise


def axis_sizes(axes: tuple[str, ...], devices: int) -> dict[str, int] | None:
    """About as many devices along every axis, 2 to 8 but for "data"; None if they do not do."""
    twos = (devices & -devices).bit_length() - 1
    size = 2 ** min(3, max(1, round(twos / len(axes))))
    data, left = divmod(devices, size ** (len(axes) - 1))
    return None if left else {axis: data if axis == "data" else size for axis in axes}


class Layout:
    """The network, its samples and its optimizer on a mesh of all devices."""

    def __init__(self, sizes: dict[str, int], options: argparse.Namespace) -> None:
        """Makes the mesh, and two programs: one for each kind of step."""
        automatic = (AxisType.Auto,) * len(sizes)  # XLA places what nothing here places
        self.mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=automatic)
        self.sizes, self.options = sizes, options
        self.loss = models.transformer(1, samples=1).loss  # of parameters of any size
        division = {"population_axis": "pop", "mesh": self.mesh} if "pop" in sizes else {}
        self.evolution = {
            "population_size": options.population,
            "execution": Execution(**division),
        }
        self.base = BASES[options.base]()
        self.tx = evolve(self.base, evolve_every=options.every, **self.evolution)
        self.step = self.step_of(self.tx)

    def step_of(self, tx: Any) -> Any:
        """The jitted step of parameters and state, which it donates."""
        tx = optax.with_extra_args_support(tx)

        @functools.partial(jax.jit, static_argnames="evolve", donate_argnums=0)
        def step(carry: Any, batch: Any, evolve: bool) -> Any:
            params, state = carry
            grads = jax.grad(self.loss)(params, batch)
            value_fn = functools.partial(self.loss, batch=self.for_members(batch))
            updates, state = tx.update(grads, state, params, value_fn=value_fn, evolve=evolve)
            return self.placed((optax.apply_updates(params, updates), state))

        return step

    def start(self, tx: Any) -> Any:
        """Parameters and the optimizer's state, made on the devices that keep them."""

        def init() -> Any:
            params = models.transformer(int(self.options.parameters), samples=1).params
            return self.placed((params, tx.init(params)))

        return jax.jit(init)()

    def placed(self, tree: Any) -> Any:
        """Divides the longest side of each matrix over "fsdp", where that is possible.

        By shape alone: what an optimizer keeps of a parameter is laid out like it.
        """

        def sharding(leaf: jax.Array) -> NamedSharding:
            spec = [None] * leaf.ndim
            longest = max(range(leaf.ndim), key=leaf.shape.__getitem__, default=0)
            if leaf.ndim > 1 and leaf.shape[longest] % self.sizes.get("fsdp", np.inf) == 0:
                spec[longest] = "fsdp"
            return NamedSharding(self.mesh, PartitionSpec(*spec))

        return lax.with_sharding_constraint(tree, jax.tree.map(sharding, tree))

    def batch(self, count: int, params: Any) -> Any:
        """Tokens for a step, and how far each is from their mean; over all devices.

        Every process draws all samples, for all layouts to see the same, and keeps those of its
        devices. A loader would read only these, and leave out `global_shape`.
        """
        shape = self.options.samples * jax.device_count(), models.TOKENS, params[0]["out"].shape[0]
        tokens = np.random.default_rng(count).standard_normal(shape, np.float32)
        targets = tokens - tokens.mean(axis=1, keepdims=True)
        rows = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))
        make = jax.make_array_from_process_local_data
        return tuple(make(rows, array, global_shape=shape) for array in (tokens, targets))

    def for_members(self, batch: Any) -> Any:
        """The samples for a cycle, where devices along "pop" must see the same ones.

        For a gradient each has its own. For fitness each has its own members instead, and
        members are compared.
        """
        axes = tuple(axis for axis in self.sizes if axis != "pop")
        return lax.with_sharding_constraint(batch, NamedSharding(self.mesh, PartitionSpec(axes)))

    def forwards(self, params: Any, batch: Any) -> jax.Array:
        """What a device evaluates in a cycle, and no noise: its members and the child."""
        members = -(-self.options.population // self.sizes.get("pop", 1))
        tokens, targets = self.for_members(batch)
        # Other tokens each time, or XLA would do the same work once.
        shifts = jnp.arange(members + 1) * 1e-3
        return lax.map(lambda shift: self.loss(params, (tokens + shift, targets)), shifts)


def train(layout: Layout) -> dict[str, Any]:
    """A host loop that knows when a cycle is due; the fitness in it, and what came of all."""
    carry, fitness = layout.start(layout.tx), []
    for count in range(1, layout.options.steps + 1):
        batch, due = layout.batch(count, carry[0]), is_due(count, layout.options.every)
        carry = jax.block_until_ready(layout.step(carry, batch, evolve=due))
        if due:
            info = carry[1].info
            fitness.append([float(info.parent_fitness), float(info.best_fitness)])
    loss = float(jax.jit(layout.loss)(carry[0], batch))
    everywhere = NamedSharding(layout.mesh, PartitionSpec())
    params = jax.jit(lambda leaves: leaves, out_shardings=everywhere)(jax.tree.leaves(carry[0]))
    return {"loss": loss, "fitness": fitness, "params": [np.asarray(leaf) for leaf in params]}


def compared(run: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """The run, with a hash for the parameters, and how far it is from that in another layout."""
    pairs = zip(run["params"], reference["params"], strict=True)
    apart = [np.max(abs(ours - theirs)) / np.max(abs(theirs)) for ours, theirs in pairs]
    fitness, expected = np.array(run["fitness"]), np.array(reference["fitness"])
    return {
        **run,
        "params": hashlib.sha256(b"".join(run["params"])).hexdigest()[:16],
        "params_differ": float(np.max(apart)),
        "fitness_differs": float(np.max(abs(fitness / expected - 1), initial=0)),
    }


def timed(layout: Layout) -> list[dict[str, Any]]:
    """A row for a step without a cycle, and one for a cycle."""

    def loop(tx: Any, step: Any, due: bool, steps: int) -> measure.Run:
        def wait(carry: Any) -> Any:  # with two steps at once simulated devices can block for ever
            return jax.block_until_ready(step(carry, batch, evolve=due))

        return measure.loop(wait, layout.start(tx), steps)

    params, _ = layout.start(layout.base)
    batch = layout.batch(0, params)
    # Without a base step nothing needs the gradient, and XLA leaves it out.
    alone = evolve(optax.set_to_zero(), **layout.evolution)
    idle = {
        "base": loop(layout.base, layout.step_of(layout.base), due=False, steps=5),
        "step": loop(layout.tx, layout.step, due=False, steps=5),
    }
    cycle = {
        "forwards": functools.partial(jax.jit(layout.forwards), params, batch),
        "cycle": loop(alone, layout.step_of(alone), due=True, steps=1),
    }
    return [
        {"what": what, "over": over, **measure.compare(runs, over, rounds=7)[what]}
        for what, over, runs in (("step", "base", idle), ("cycle", "forwards", cycle))
    ]


if __name__ == "__main__":
    main()

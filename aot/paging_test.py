"""What host paging is on an accelerator, read from programs compiled for one.

Nothing runs here: the compilers for TPUs and GPUs need no device. How often a program
makes the copies that it holds follows from the loops around them.
"""

import pytest

from aot.compiled import (
    CASES,
    CHIPS,
    LEAF_COUNT,
    PLUGINS,
    SIDE,
    compile_step,
    missing,
    params_bytes,
)

CYCLE = ("while", "conditional")

host_cases = pytest.mark.parametrize(("population", "elites", "chips"), CASES)


@pytest.fixture(params=PLUGINS)
def target(request):
    """The chip to compile for; skipped, and said so, where its compiler is missing."""
    reason = missing(request.param)
    if reason:
        pytest.skip(f"NOT CHECKED for {request.param}: {reason}")
    return request.param


def moved(sites, way, *nest):
    """Bytes that the copies of one kind move if each of them is made once."""
    return sum(site.size for site in sites if (site.way, site.nest) == (way, nest))


@host_cases
def test_elites_live_in_host_memory(target, population, elites, chips):
    step = compile_step(target, "host", population, elites, chips)
    assert "S(5)" in step.program.text
    assert step.host == pytest.approx(elites, rel=0.1)  # on each chip its share of them


@pytest.mark.parametrize(
    ("memory", "population", "elites"), [("device", 16, 8), ("replay", 64, 16)]
)
def test_the_other_modes_leave_host_memory_alone(target, memory, population, elites):
    step = compile_step(target, memory, population, elites)
    assert "S(5)" not in step.program.text
    assert step.host == 0


def test_device_memory_does_not_grow_with_the_population(target):
    few, many = compile_step(target, "host", 8, 2), compile_step(target, "host", 64, 2)
    assert many.device - few.device < 0.01


@pytest.mark.parametrize("memory", ["host", "replay"])
def test_device_memory_hardly_grows_with_the_elites(target, memory):
    few, many = compile_step(target, memory, 8, 2), compile_step(target, memory, 64, 16)
    # On the TPU an elite costs 0.2 MiB of its own with "host".
    assert (many.device - few.device) * params_bytes() < (16 - 2) * 2**20


@pytest.mark.parametrize("memory", ["host", "replay"])
def test_a_cycle_holds_two_copies_above_the_step_without(target, memory):
    """The updates, which that step applies and frees, and the active member or the sum.

    With "host" also the leaf that is on its way.
    """
    idle = compile_step(target, memory, 16, 8, evolve=False)
    step = compile_step(target, memory, 16, 8)
    assert step.device < idle.device + 2.02 + (memory == "host") / LEAF_COUNT


def test_members_that_learned_live_in_host_memory_and_hold_their_gradient(target):
    drawn = compile_step(target, "host", 16, 8)
    learned = compile_step(target, "host", 16, 8, learns=True)
    assert learned.host == pytest.approx(8, rel=0.1)
    assert learned.device < drawn.device + 1.02


def test_elites_on_the_device_take_device_memory(target):
    device, host = compile_step(target, "device", 16, 8), compile_step(target, "host", 16, 8)
    assert device.device - host.device > 7


@pytest.mark.parametrize("memory", ["host", "replay"])
def test_device_memory_of_sharded_parameters_is_bounded(target, memory):
    """Two copies of a chip's share above the step without a cycle; on a TPU a whole leaf too.

    Of four leaves over four chips one is as large as the share.
    """
    idle = compile_step(target, memory, 16, 8, CHIPS, evolve=False)
    step = compile_step(target, memory, 16, 8, CHIPS)
    gathered = CHIPS / LEAF_COUNT if target.startswith("TPU") else 0
    assert step.device < idle.device + 2.1 + gathered


def test_no_chip_holds_whole_pages_of_sharded_parameters(target):
    one, four = (compile_step(target, "device", 16, 8, chips) for chips in (1, CHIPS))
    assert four.device < one.device + 1.5


@host_cases
def test_host_buffers_are_only_ever_copied_whole(target, population, elites, chips):
    program = compile_step(target, "host", population, elites, chips).program
    # No dynamic slice, fusion or custom call: nothing that could run on the host.
    assert {step.opcode for _, step in program.host_accesses()} <= {"copy", "copy-start"}
    assert "_xla_compute_type" not in program.text
    assert {site.size for site in program.host_copies()} == {params_bytes(chips) // LEAF_COUNT}


@host_cases
def test_an_idle_step_moves_nothing(target, population, elites, chips):
    program = compile_step(target, "host", population, elites, chips).program
    outermost = [site.path[0][:2] for site in program.host_copies()]
    assert outermost
    assert all(program.trips_at_most_once(*loop) for loop in outermost)


def test_an_idle_step_copies_no_parameter(target):
    """The loop around the cycle passes updates through in place."""
    program = compile_step(target, "host", 16, 8).program
    entry = program.computations[program.entry].values()
    assert any(step.opcode == "while" for step in entry)
    assert not [step for step in entry if step.opcode == "copy" and f"{SIDE},{SIDE}" in step.shape]


def test_a_step_that_is_idle_by_choice_knows_no_host_memory(target):
    program = compile_step(target, "host", 16, 8, 1, evolve=False).program
    assert "S(5)" not in program.text


@host_cases
def test_a_cycle_moves_an_elite_when_it_enters_and_when_it_recombines(
    target, population, elites, chips
):
    """At most insertions + k copies of the parameters.

    To the host a page has one copy, in the loop over members, in a loop of its own that runs at
    most once. A member that enters takes one page, so that one of these loops runs: insertions
    in all. To the device a page has one copy, in a loop that runs at most once too, in the one
    that makes the child on the last trip over the members, to recombine: k in all. Around all of
    it are the loop that runs a cycle at most once, and a conditional that always takes the cycle.
    """
    program = compile_step(target, "host", population, elites, chips).program
    sites = program.host_copies()
    pages = elites * params_bytes(chips)
    assert moved(sites, "to host", *CYCLE, "while", "while") == pages
    assert moved(sites, "to device", *CYCLE, "while", "while", "while") == pages
    assert sum(site.size for site in sites) == 2 * pages

    own = {site.path[-1][:2] for site in sites}
    assert len(own) == 2 * elites
    assert all(program.trips_at_most_once(*loop) for loop in own)
    (members,) = {site.path[2][:2] for site in sites}
    assert not program.trips_at_most_once(*members)
    (child,) = {site.path[3][:2] for site in sites if site.way == "to device"}
    assert program.trips_at_most_once(*child)

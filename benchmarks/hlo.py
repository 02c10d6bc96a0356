"""Reads the text of an optimised HLO program: its host memory, and what devices exchange.

XLA marks an array in host memory with `S(5)` in its layout. A program is a set of
computations; the bodies of loops and the branches of conditionals are computations
that an instruction calls.
"""

from collections.abc import Iterator
import math
import re
from typing import NamedTuple

HOST = "S(5)"
# Instructions that hand a buffer on, or say that it exists, and touch none of its bytes.
_HANDS_ON = {
    "bitcast",
    "conditional",
    "copy-done",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "tuple",
    "while",
}
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_BYTES |= {"s64": 8, "u64": 8, "f64": 8}
# What a device receives, in rings of n devices, over the bytes of its operands.
_RECEIVED = {
    "all-gather": lambda n: n - 1,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
    "reduce-scatter": lambda n: (n - 1) / n,
}


class Instruction(NamedTuple):
    """One line of a computation: `name = shape opcode(operands), attributes`."""

    name: str
    shape: str
    opcode: str
    operands: str
    attributes: str

    @property
    def inputs(self) -> list[str]:
        """The names of its operands."""
        return re.findall(r"%([\w.-]+)", self.operands)

    def called(self, attribute: str) -> list[str]:
        """The computations that an attribute names."""
        match = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%[\w.-]+)", self.attributes)
        return re.findall(r"%([\w.-]+)", match[1]) if match else []

    def branches(self) -> list[str]:
        """The computations that a conditional chooses from."""
        names = ("true_computation", "false_computation", "branch_computations")
        return [computation for name in names for computation in self.called(name)]


Computation = dict[str, Instruction]  # in the order of the text: the root is the last


class Site(NamedTuple):
    """A place in the program that copies a whole buffer to, from or within host memory.

    Attributes:
        way: "to host", "to device" or "on host".
        size: in bytes.
        path: the loops and conditionals around it, outermost first, each with the
            computation that holds it, its instruction, and the computation it runs.
    """

    way: str
    size: int
    path: tuple[tuple[str, Instruction, str], ...]

    @property
    def nest(self) -> tuple[str, ...]:
        """The kinds of what is around it, outermost first."""
        return tuple(step.opcode for _, step, _ in self.path)


class Collective(NamedTuple):
    """An exchange between devices.

    Attributes:
        opcode: "all-gather", "all-reduce", "all-to-all", "collective-permute" or
            "reduce-scatter"; of a pair of start and done as well.
        trips: how often the loops around it run it.
        size: the bytes that a device receives all of these times.
    """

    opcode: str
    trips: int
    size: float


class Program(NamedTuple):
    """A parsed program.

    Attributes:
        text: the text it was parsed from.
        computations: by name.
        entry: name of the computation where it starts.
    """

    text: str
    computations: dict[str, Computation]
    entry: str

    def host_accesses(self) -> list[tuple[str, Instruction]]:
        """Every instruction that touches the bytes of a host buffer, and its computation."""
        return [
            (name, step)
            for name, steps in self.computations.items()
            for step in steps.values()
            if HOST in step.shape + "".join(_shapes(steps, step))
            and step.opcode not in _HANDS_ON
            and not _allocates(step)
        ]

    def host_copies(self) -> list[Site]:
        """Every copy of a host buffer."""
        return [
            self._site(name, step)
            for name, step in self.host_accesses()
            if step.opcode in ("copy", "copy-start")
        ]

    def collectives(self) -> list[Collective]:
        """Every exchange between devices, where conditionals take the branch that sends most."""
        return list(self._exchanges(self.entry, 1))

    def trips(self, loop: Instruction) -> int:
        """How often a loop runs that counts from 0 to a constant; 1 for any other.

        The others run at most once, see `run_if` in `egd_optax.backend.xla`.
        """
        (condition,) = loop.called("condition")
        steps = self.computations[condition]
        *_, root = steps.values()
        compare = self._root(root) if root.opcode == "fusion" else root
        if "direction=LT" not in compare.attributes or len(root.inputs) != 2:
            return 1
        counter, bound = (steps[name] for name in root.inputs)
        if bound.opcode != "constant" or _field(counter) is None:
            return 1
        return math.ceil(int(bound.operands) / self._stride(loop, _field(counter)))

    def trips_at_most_once(self, computation: str, loop: Instruction) -> bool:
        """Whether a loop counts from 0 to a boolean, so that it runs once or not at all."""
        (condition,) = loop.called("condition")
        compared = self._compared(condition)
        if compared is None:
            return False
        counter, bound = compared
        (carry,) = loop.inputs
        fields = self.computations[computation][carry].inputs
        start = self._origin(computation, fields[counter])
        end = self._origin(computation, fields[bound])
        return (start.opcode, start.operands) == ("constant", "0") and end.opcode == "from pred"

    def _exchanges(self, computation: str, trips: int) -> Iterator[Collective]:
        steps = self.computations[computation]
        for step in steps.values():
            opcode = step.opcode.removesuffix("-start")
            if opcode in _RECEIVED:
                operands = sum(map(_size, _shapes(steps, step)))
                size = trips * operands * _RECEIVED[opcode](_group_size(step))
                yield Collective(opcode, trips, size)
            elif opcode == "while":
                yield from self._exchanges(*step.called("body"), trips * self.trips(step))
            elif opcode == "conditional":
                ways = [list(self._exchanges(name, trips)) for name in step.branches()]
                yield from max(ways, key=lambda way: sum(exchange.size for exchange in way))
            else:
                called = step.called("calls") + step.called("to_apply") * (opcode == "call")
                for name in called:
                    yield from self._exchanges(name, trips)

    def _site(self, computation: str, copy: Instruction) -> Site:
        if copy.opcode == "copy-start":  # its shape is (target, source, context)
            target, source = re.findall(r"\w+\[[\d,]*\](?:\{[^}]*\})?", copy.shape)[:2]
        else:
            target, (source,) = copy.shape, _shapes(self.computations[computation], copy)
        ends = (HOST in source, HOST in target)
        way = {(0, 1): "to host", (1, 0): "to device", (1, 1): "on host"}[ends]
        return Site(way, _size(target), self._path(computation))

    def _path(self, computation: str) -> tuple[tuple[str, Instruction, str], ...]:
        if computation == self.entry:
            return ()
        (call,) = [  # one caller: XLA shares no body that touches host memory
            (name, step, computation)
            for name, steps in self.computations.items()
            for step in steps.values()
            if f"%{computation}" in re.findall(r"%[\w.-]+", step.attributes)
        ]
        return (*self._path(call[0]), call)

    def _stride(self, loop: Instruction, counter: int) -> int:
        """What a loop adds to its counter, a field of its carry."""
        (body,) = loop.called("body")
        steps = self.computations[body]
        *_, root = steps.values()
        next_ = steps[root.inputs[counter]]
        constants = [steps[name] for name in next_.inputs if steps[name].opcode == "constant"]
        return int(constants[0].operands) if next_.opcode == "add" and constants else 1

    def _compared(self, condition: str) -> tuple[int, int] | None:
        """The fields i, j of the carry in a condition `carry[i] < carry[j]`; None in others."""
        steps = self.computations[condition]
        *_, root = steps.values()
        compare = self._root(root) if root.opcode == "fusion" else root
        fields = [_field(steps[name]) for name in root.inputs]
        if "direction=LT" not in compare.attributes or len(fields) != 2 or None in fields:
            return None
        return fields[0], fields[1]

    def _origin(self, computation: str, name: str) -> Instruction:
        """The instruction that computed a value, behind copies, slices and fusions."""
        steps = self.computations[computation]
        step = steps[name]
        if step.opcode in ("bitcast", "copy", "reshape", "slice"):
            return self._origin(computation, step.inputs[0])
        if step.opcode == "get-tuple-element" and steps[step.inputs[0]].opcode == "fusion":
            fusion = steps[step.inputs[0]]
            return self._origin(*fusion.called("calls"), self._root(fusion).inputs[_field(step)])
        if step.opcode == "fusion":
            return self._origin(*step.called("calls"), self._root(step).name)
        if step.opcode == "convert" and _shapes(steps, step)[0].startswith("pred"):
            return step._replace(opcode="from pred")
        return step

    def _root(self, fusion: Instruction) -> Instruction:
        (fused,) = fusion.called("calls")
        *_, root = self.computations[fused].values()
        return root


def parse(text: str) -> Program:
    """Parses the text of a compiled program."""
    computations: dict[str, Computation] = {}
    entry, steps = "", {}
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%([\w.-]+) \(.*\{$", line)
        if header:
            steps = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif line.startswith("  "):
            step = _instruction(line)
            steps[step.name] = step
    return Program(text, computations, entry)


def _instruction(line: str) -> Instruction:
    name, rest = re.match(r"\s+(?:ROOT )?%([\w.-]+) = (.*)", line).groups()
    shape, rest = _split(rest) if rest.startswith("(") else rest.split(" ", 1)
    opcode, rest = re.match(r"\s*([\w-]+)(.*)", rest).groups()
    operands, attributes = _split(rest)
    return Instruction(name, shape, opcode, operands[1:-1], attributes)


def _split(text: str) -> tuple[str, str]:
    """Splits behind the bracket that closes the one at the start."""
    depth = 0
    for at, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0:
            return text[: at + 1], text[at + 1 :]
    raise ValueError(text)


def _shapes(steps: Computation, step: Instruction) -> list[str]:
    return [steps[name].shape for name in step.inputs]


def _field(step: Instruction) -> int | None:
    match = re.search(r"\bindex=(\d+)", step.attributes)
    return int(match[1]) if step.opcode == "get-tuple-element" and match else None


def _allocates(step: Instruction) -> bool:
    return 'custom_call_target="AllocateBuffer"' in step.attributes


def _group_size(step: Instruction) -> int:
    """The devices that exchange with each other; 2 where pairs are listed."""
    text = step.attributes
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text):
        sizes = dict(re.findall(r"('\w+')=(\d+)", match[1]))
        return math.prod(int(sizes[name]) for name in match[2].split(","))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]<=", text):
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return len(match[1].split(","))
    return 2


def _size(shape: str) -> int:
    dtype, dims = re.match(r"(\w+)\[([\d,]*)\]", shape).groups()
    return _BYTES[dtype] * math.prod(map(int, filter(None, dims.split(","))))

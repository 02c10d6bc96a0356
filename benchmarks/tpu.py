"""The device memory that a program for a TPU takes, as its compiler wrote it into the program.

`memory_analysis` names more temporary memory than such a program has where loops are nested:
by as much as the arrays that they carry. `aot/tpu_test.py` shows it on a network that compiles
for a chip on which that much would not fit. So the compiler is asked for the last form of a
program, which lists every buffer with its size and its place.
"""

import os
from pathlib import Path
import re
import tempfile

import jax
from jax.experimental import topologies

# Removed when the interpreter exits.
_FOLDER = tempfile.TemporaryDirectory()
_FLAGS = (
    f"--xla_jf_dump_to={_FOLDER.name}",
    "--xla_jf_dump_llo_pass_label_regex=final-top-level-llo",
)
# What the runtime keeps for itself, of any program, has a fixed place and is not the program's.
_BUFFER = re.compile(
    r"#allocation\d+ \[.*, space=hbm, size = (0x[0-9a-f]+), offset = (0x[0-9a-f]+), (?!fixed_abs)"
)


def topology(name: str) -> topologies.TopologyDescription:
    """Chips that need not be here, such as "v5e:2x2", whose compiler shows its programs.

    The compiler reads its environment once: call this before anything else starts it.
    """
    given = os.environ.get("LIBTPU_INIT_ARGS", "")
    if _FLAGS[0] not in given:
        os.environ["LIBTPU_INIT_ARGS"] = " ".join((given, *_FLAGS))
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # asks no metadata server which TPU this is
    return topologies.get_topology_desc(name, platform="tpu")


def compile_measured(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, int]:
    """Compiles a program for the chips of a `topology`.

    Args:
        lowered: the program.

    Returns:
        It compiled, and where the last of its buffers in the device memory of one chip ends, in
        bytes: what it takes beside its arguments and the results that these are donated to.

    Raises:
        RuntimeError: the compiler did not write down what it made.
    """
    for old in Path(_FOLDER.name).iterdir():
        old.unlink()
    compiled = lowered.compile()
    ends = [
        int(offset, 16) + int(size, 16)
        for written in Path(_FOLDER.name).iterdir()
        for size, offset in _BUFFER.findall(written.read_text(errors="replace"))
    ]
    if not ends:
        raise RuntimeError(
            "libtpu wrote no program: it was started before `benchmarks.tpu.topology`, or the "
            "program came from a compilation cache."
        )
    return compiled, max(ends)

"""The suite in environments of their own.

`make test-matrix`: on every Python here, with the lowest, the pinned and the newest versions.
`make test-build`: from the sdist, on the wheel, on the newest Python here.
"""

import os
from pathlib import Path
import shutil
import tarfile

import nox
from nox.command import CommandFailed

nox.options.default_venv_backend = "uv"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False

# pyenv hides the Pythons that are not selected, behind programs of their names that fail.
pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
hidden = [str(path) for path in pyenv.glob("versions/3.*/bin")]
os.environ["PATH"] = os.pathsep.join([*hidden, os.environ["PATH"]])

PYTHONS = nox.project.python_versions(nox.project.load_toml())
HERE = [version for version in PYTHONS if shutil.which(f"python{version}")]

PYTEST = ("python", "-m", "pytest", "-n", "auto")
# The two parts of `make test`, and how XLA compiles for them.
PARTS = {
    "fast": ("not exact and not wide and not long", ("python", "-m", "xla_options", "hurried")),
    "exact": ("exact and not wide and not long", ()),
}
# A package can lack these, or a newer JAX break them: the surface, the formulas, documents, states,
# the tricks on the compiler and the pinned draws. All tests would take as long as `make test`.
ON_A_WHEEL = [
    f"tests/{name}_test.py"
    for name in (
        "surface",
        "contract",
        "oracle",
        "presets",
        "flax",
        "checkpoint",
        "documents",
        "style",
        "tables",
        "xla",
        "key_schedule",
    )
]


@nox.session(python=PYTHONS)
@nox.parametrize("resolution", ["lowest", "pinned", "highest"])
def tests(session: nox.Session, resolution: str) -> None:
    """Runs what `make test` runs, with versions at an end of what pyproject.toml admits, or pinned.

    A part that fails does not keep the others from running, and docs/compatibility/versions.md,
    which lists the runs, says so.
    """
    versions = {
        "lowest": ("--resolution", "lowest-direct"),
        "pinned": ("--constraint", "requirements.lock"),
        "highest": ("--resolution", "highest"),
    }
    session.install(*versions[resolution], "--editable", ".[test]")
    if session.posargs:
        session.run(*PYTEST, *session.posargs)
        return
    folder = Path(session.create_tmp()).resolve() / "runs"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    commands = {"types": ("mypy",)}
    for part, (marked, launcher) in PARTS.items():
        commands[part] = (*launcher, *PYTEST, "-m", marked, f"--record={folder / part}.jsonl")
    failed = []
    for part, command in commands.items():
        try:
            session.run(*command)
        except CommandFailed:
            failed.append(part)
    session.run("python", "tests/versions.py", "add", resolution, str(folder), *failed)
    if failed:
        session.error(f"failed: {', '.join(failed)}")


@nox.session(python=HERE[-1:] or None)
def build(session: nox.Session) -> None:
    """Builds wheel and sdist, and runs tests of the sdist on the wheel.

    The types, and the files of `ON_A_WHEEL`; others with `nox -s build -- ARGUMENTS OF PYTEST`,
    `tests` for example. `make test-matrix` runs all on this Python.
    """
    folder = Path(session.create_tmp()).resolve() / "build"
    shutil.rmtree(folder, ignore_errors=True)
    session.install("--constraint", "requirements.lock", "build", "flit_core")
    session.run("python", "-m", "build", "--no-isolation", "--outdir", str(folder))
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    session.install("--constraint", "requirements.lock", f"egd_optax[test] @ file://{wheel}")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    # Python would find the sources before the wheel; their doctests come with these.
    shutil.rmtree(unpacked / "egd_optax")
    session.chdir(unpacked)
    session.run("python", "-c", "import egd_optax; assert 'site-packages' in egd_optax.__file__")
    if session.posargs:
        session.run(*PYTEST, *session.posargs)
        return
    session.run("mypy")
    for marked, launcher in PARTS.values():
        session.run(*launcher, *PYTEST, *ON_A_WHEEL, "-m", marked)

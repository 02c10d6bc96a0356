"""The suite in environments of their own.

`make test-matrix`: on every Python here, at both ends of the versions admitted.
`make test-build`: from the sdist, on the wheel.
"""

import os
from pathlib import Path
import shutil
import tarfile

import nox

nox.options.default_venv_backend = "uv"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False

# pyenv hides the Pythons that are not selected.
pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
hidden = [str(path) for path in pyenv.glob("versions/3.*/bin")]
os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *hidden])

PYTHONS = nox.project.python_versions(nox.project.load_toml())


# The two parts of `make test`, and how XLA compiles for them.
HURRIED = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
PARTS = {"not exact and not wide and not long": HURRIED, "exact and not wide and not long": ""}


@nox.session(python=PYTHONS)
@nox.parametrize("resolution", ["lowest-direct", "highest"])
def tests(session: nox.Session, resolution: str) -> None:
    """Runs the suite with the dependencies of pyproject.toml at one end of their range."""
    session.install("--resolution", resolution, "--editable", ".[test]")
    session.run("python", "-m", "pytest", "-n", "auto", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Builds wheel and sdist, and runs the tests of the sdist on the wheel.

    Those of `make test`; others with `nox -s build -- ARGUMENTS OF PYTEST`, `tests` for example.
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
    pytest = ("python", "-m", "pytest", "-n", "auto")
    if session.posargs:
        session.run(*pytest, *session.posargs)
        return
    for marked, flags in PARTS.items():
        session.run(*pytest, "tests", "README.md", "docs", "-m", marked, env={"XLA_FLAGS": flags})

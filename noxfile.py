"""`make test-matrix`: the suite on every Python here, at both ends of the versions admitted."""

import os
from pathlib import Path

import nox

nox.options.default_venv_backend = "uv"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False

# pyenv hides the Pythons that are not selected.
pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
hidden = [str(path) for path in pyenv.glob("versions/3.*/bin")]
os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *hidden])

PYTHONS = nox.project.python_versions(nox.project.load_toml())


@nox.session(python=PYTHONS)
@nox.parametrize("resolution", ["lowest-direct", "highest"])
def tests(session: nox.Session, resolution: str) -> None:
    """Runs the suite with the dependencies of pyproject.toml at one end of their range."""
    session.install("--resolution", resolution, "--editable", ".[test]")
    session.run("python", "-m", "pytest", "-n", "auto", *session.posargs)

"""Executes every notebook's `.py` and writes the `.ipynb` beside it, without volatile metadata."""

import os
from pathlib import Path
import time

os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")  # else jupyter_core warns

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
import jupytext
from nbclient import NotebookClient
import nbformat
import traitlets


def main() -> None:
    """Executes all notebooks."""
    for script in sorted(Path(__file__).parent.glob("[0-9]*.py")):
        start = time.perf_counter()
        notebook = jupytext.read(script)
        client(notebook, resources={"metadata": {"path": str(script.parent)}}).execute()
        clean(notebook)
        nbformat.write(notebook, script.with_suffix(".ipynb"))
        print(f"{script.stem}: {time.perf_counter() - start:.1f} s")


class ThisPython(AsyncKernelManager):
    """Starts a kernel of this Python, whatever kernels the user has installed."""

    @traitlets.default("kernel_spec_manager")
    def _ipykernels_own(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[])


def client(notebook: nbformat.NotebookNode, **options: object) -> NotebookClient:
    """A client that starts its kernel and ends it with all connections."""
    return NotebookClient(
        notebook, kernel_manager_class=ThisPython, kernel_name="python3", timeout=120, **options
    )


def clean(notebook: nbformat.NotebookNode) -> None:
    """Leaves what is the same wherever and whenever the notebook is executed."""
    notebook.metadata = {
        "jupytext": {"formats": "ipynb,py:percent"},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    }
    for number, cell in enumerate(notebook.cells, 1):
        cell.id = f"cell-{number:02}"
        cell.metadata = {}
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output.metadata = {}


if __name__ == "__main__":
    main()

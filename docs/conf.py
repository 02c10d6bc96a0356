"""How Sphinx builds the documentation: `make docs`, without a network."""

from pathlib import Path
import re
import shutil
from typing import Any

import egd_optax

HERE = Path(__file__).parent
# Sphinx reads what lies below this folder; the notebooks are committed as they were executed.
shutil.copytree(
    HERE.parent / "notebooks",
    HERE / "notebooks",
    ignore=lambda _, names: [name for name in names if not name.endswith(".ipynb")],
    dirs_exist_ok=True,
)

project = "egd_optax"
author = "The egd_optax authors"
copyright = author  # noqa: A001  # the name that Sphinx reads
version = release = egd_optax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
default_role = "code"  # docstrings set names in single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say more: shapes, units, defaults
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # a field that autodoc lists too would be described twice
napoleon_custom_sections = [("Cost", "notes")]
# What is copied from an example is the program, without prompts and results.
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

html_theme = "sphinx_book_theme"
html_title = f"egd_optax {release}"
html_theme_options = {"show_toc_level": 2, "use_download_button": False}
html_static_path = ["_static"]
html_css_files = ["narrow.css", "results.css"]


def with_default_written_out(
    app: Any, what: str, name: str, value: object, options: object, signature: str, returned: str
) -> tuple[str, str] | None:
    """Shows the default of `es_optimizer` as users write it, not by the name that it has inside."""
    if not signature:
        return None
    return re.sub(r"(spec\.)?\bSTRAIGHT\b", "optax.sgd(1.0)", signature), returned


def setup(app: Any) -> None:
    """Connects what Sphinx calls."""
    app.connect("autodoc-process-signature", with_default_written_out)

"""The check of sentences finds what breaks a rule, and passes what does not."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "docs" / "style.py"
SPEC = importlib.util.spec_from_file_location("style", SCRIPT)
style = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(style)
PAGE = style.ROOT / "docs" / "cookbook" / "nnx.md"


def faults(text, path=PAGE):
    return list(style.faults(path, text))


@pytest.mark.parametrize(
    "text",
    [
        " ".join(["word"] * 26) + ".",
        "A sentence of few words. What it does is a subject here.",
        "This holds, likewise.",
        "It takes such a function.",
        "- **Bold.** Where it is due a cycle runs.",
        "The parent is here, and nothing says what it is.",
    ],
)
def test_a_fault_is_found(text):
    assert len(faults(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        " ".join(["word"] * 25) + ".",
        "What does it do? It steps.",
        "Follow the gradient of a stand-in.",
        "The [parent](../concepts/words.md#parent) is here.",
        "| " + " ".join(["cell"] * 40) + " |",
        "```python\nwhat = such\n```",
        "`" + " ".join(["code"] * 40) + "` is one word.",
    ],
)
def test_what_breaks_no_rule_passes(text):
    assert not faults(text)


def test_docstrings_are_read_without_examples():
    source = 'def f():\n    """One thing.\n\n    Example:\n        >>> likewise\n    """\n'
    read = "".join(style.docstrings(source))
    assert "One thing." in read
    assert "likewise" not in read


def test_all_that_users_read_is_checked():
    paths = {path.relative_to(style.ROOT).as_posix() for path, _ in style.texts()}
    assert {"README.md", "docs/faq.md", "egd_optax/_evolve.py", "CONTRIBUTING.md"} <= paths
    assert not [path for path in paths if "_build" in path]

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


def test_all_that_users_read_is_checked(tmp_path):
    read = ["README.md", "CONTRIBUTING.md", "docs/faq.md", "docs/results/bbob.md", "egd_optax/a.py"]
    for name in [*read, "docs/_build/page.md", "docs/notebooks/page.md", "tests/a.py"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'"""Text of {name}."""')
    found = {path.relative_to(tmp_path).as_posix(): text for path, text in style.texts(tmp_path)}
    assert sorted(found) == sorted(read)
    assert found["egd_optax/a.py"] == "Text of egd_optax/a.py."
    assert style.ROOT / "README.md" in {path for path, _ in style.texts()}

"""README and pages: every program pastes into a Python shell, and prints what the page says."""

import pages
import pytest

NAMES = {path.relative_to(pages.ROOT).as_posix(): path for path in pages.pages()}
PROGRAMS = [name for name, path in NAMES.items() if pages.blocks(path)]
HERE = [name for name in PROGRAMS if name not in pages.ELSEWHERE]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.exact if "/" not in name else ()) for name in HERE],
)
def test_the_programs_of_a_page_run_as_pasted(name):
    names = {"__name__": "__main__"}
    for block in pages.blocks(NAMES[name]):
        pages.paste(block, names)


def test_a_page_shows_its_bars(capfd):
    test_the_programs_of_a_page_run_as_pasted("docs/cookbook/progress.md")
    shown = capfd.readouterr().err
    assert shown.count("100/100") >= 2
    assert "fitness=" in shown


def test_there_are_programs():
    assert len(HERE) > 15
    assert set(PROGRAMS) >= pages.ELSEWHERE


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_have_no_prompts_and_fit(name):
    lines = [line for block in pages.blocks(NAMES[name]) for line in block.splitlines()]
    assert not [line for line in lines if line.lstrip().startswith((">>>", "... "))]
    assert not [line for line in lines if len(line) > pages.WIDEST]


@pytest.mark.parametrize(
    ("block", "error"),
    [
        ("def f():\n    return 1\nprint(f())  # 1\n", SyntaxError),  # a shell needs an empty line
        ("def f():\n    x = 1\n\n    return x\n", IndentationError),  # and ends at this one
        ("print(1)\n", AssertionError),
        ("print(1)  # 2\n", AssertionError),
        ("1 + 1\n", AssertionError),
        ("print(end='')  #\n", AssertionError),
        ("x = (\n", AssertionError),
    ],
)
def test_a_shell_refuses(block, error):
    with pytest.raises(error):
        pages.paste(block, {})


def test_a_shell_takes():
    pages.paste("x = 1  # a comment\nprint(x)  # 1\n", {})
    pages.paste('print("a\\nb")\n# a\n# b\nx = 2\n', {})
    pages.paste("print(0.123456)  # 0.12...\n", {})

"""Pastes the programs of a page of the documentation into a Python shell, line by line."""

import codeop
import contextlib
import doctest
import io
from pathlib import Path
import re

ROOT = Path(__file__).parents[1]
BUILT = {"_build", "notebooks"}
FENCE = re.compile(r"^```(?:python|py|\{code-block\} python)\n(.*?)^```", flags=re.M | re.S)
WIDEST = 72
# Programs with other libraries: `make test-clients` installs these, and runs the pages.
ELSEWHERE = {"docs/compatibility/works_with.md", "docs/cookbook/evosax.md"}


def pages():
    """README and all pages of the documentation."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
    return [path for path in found if not BUILT & set(path.relative_to(ROOT).parts)]


def blocks(path):
    """The blocks of Python of a page."""
    return FENCE.findall(path.read_text())


def paste(block, names):
    """Runs a block as a shell does that gets it as lines; checks what is printed.

    A shell ends a definition at the first empty line, and only there. The comment after a `print`,
    on its last line or below it, is what it prints.
    """
    lines = block.rstrip("\n").split("\n")
    compile_command, waiting = codeop.CommandCompiler(), []
    for at, line in enumerate([*lines, ""]):
        waiting.append(line)
        code = compile_command("\n".join(waiting), "<page>", "single")
        if code is None:
            continue
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, names)
        _check("\n".join(waiting), printed.getvalue(), _told(lines, at))
        waiting = []
    assert not "".join(waiting), f"does not end: {waiting}"


def _told(lines, at):
    """The comment on a line, and those alone on the lines below."""
    comment = re.search(r"#\s?(.*)$", lines[at]) if at < len(lines) else None
    told = [comment.group(1)] if comment else []
    for line in lines[at + 1 :]:
        if not line.startswith("#"):
            break
        told.append(line.removeprefix("#").removeprefix(" "))
    return "".join(f"{line}\n" for line in told)


def _check(source, printed, told):
    if printed:
        same = doctest.OutputChecker().check_output(told, printed, doctest.ELLIPSIS)
        assert same, f"{source}\nprints\n{printed}\nand the page says\n{told}"
    else:
        assert not source.startswith("print("), f"printed nothing: {source}"

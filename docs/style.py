"""Checks the sentences of README, pages and docstrings: `python docs/style.py [FILE ...]`.

`docs/style.toml` has the rules. No linter of prose that pip installs reads docstrings and rules of
our own: Vale's package downloads its program, textlint needs Node, proselint has fixed checks.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
import re
import sys
import tomllib
from typing import Any

ROOT = Path(__file__).parents[1]
RULES = tomllib.loads((ROOT / "docs/style.toml").read_text())
NOT_PROSE = re.compile(
    r"^---\n[\s\S]*?^---\n|```[\s\S]*?```|<!--[\s\S]*?-->|<[^>]*>"
    r"|^ *(?:>>>|\.\.\.|\||#|\.\. |:\w+).*$|^ {4}.*$"
    r"|^\w+ {2,}\S.*$|^.*-->.*$",  # lists of files, arrows
    flags=re.M,
)
END = re.compile(
    r"(?:(?<=[.:;!?])|(?<=[.!?]\*\*)|(?<=[.!?][\"')]))\s+(?=[A-Z*`\[(_\"-])|\n\s*\n|\n\s*(?:[-*]|\d+\.)\s"
)


def main(names: list[str]) -> int:
    """Prints what breaks a rule; returns 1 if anything does."""
    wanted = {Path(name).resolve() for name in names} or None
    found = [
        f"{path.relative_to(ROOT)}: {fault}"
        for path, text in texts()
        if wanted is None or path in wanted
        for fault in faults(path, text)
    ]
    print(*found, f"{len(found)} sentences break docs/style.toml", sep="\n")
    return int(bool(found))


def texts(root: Path = ROOT) -> Iterator[tuple[Path, str]]:
    """Every file below a folder, with its prose."""
    excluded = [root / name for name in RULES["excluded"]]
    for pattern in RULES["files"]:
        for path in sorted(root.glob(pattern)):
            if not any(path.is_relative_to(folder) for folder in excluded):
                yield path, path.read_text()
    for pattern in RULES["docstrings"]:
        for path in sorted(root.glob(pattern)):
            yield path, "\n\n".join(docstrings(path.read_text()))


def docstrings(source: str) -> Iterator[str]:
    """The docstrings of a module, its classes and its functions, without examples."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            # A new paragraph for every argument, and none for indented text.
            text = re.split(r"^Example:|^References:", ast.get_docstring(node) or "", flags=re.M)[0]
            lines = [line.strip() for line in text.splitlines()]
            yield re.sub(r"\n(?=\w+: )", "\n\n", "\n".join(lines))


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text; code is one word, and tables, headings and programs are left out."""
    text = NOT_PROSE.sub("\n", text)
    text = re.sub(r"`[^`]*`(?:_{1,2})?", "X", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    for sentence in END.split(text):
        yield " ".join(sentence.split())


def faults(path: Path, text: str) -> Iterator[str]:
    """The sentences of a text that break a rule, and why."""
    words = re.compile(rf"\b({'|'.join(RULES['words'])})\b(?!-)", flags=re.I)
    for sentence in sentences(text):
        count = len(sentence.split())
        if count > RULES["longest"]:
            yield f"{count} words: {sentence}"
        elif count > 2 and sentence.split()[0] in RULES["openings"] and not sentence.endswith("?"):
            yield f"opening: {sentence}"
        elif word := words.search(sentence):
            yield f"{word.group()!r}: {sentence}"
    if any(path.match(pattern) for pattern in RULES["guide"]):
        yield from undefined(path, text)


def undefined(path: Path, text: str) -> Iterator[str]:
    """The words of this library that a page uses without a link to their definition."""
    glossary: Any = ROOT / RULES["glossary"]
    prose = " ".join(sentences(text)).lower()
    used = [term for term in RULES["terms"] if re.search(rf"\b{term}\b", prose)]
    if used and glossary.name not in text and path != glossary:
        yield f"no link to {glossary.name}, which defines {', '.join(used)}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The tables of the documentation fit: at most four columns, and what they name exists."""

import re

import pages
import pytest

MOST = 4
RULE = re.compile(r"^\s*\|?(?:\s*:?-{3,}:?\s*\|)*\s*:?-{3,}:?\s*\|?\s*$")
INCLUDE = re.compile(r"^```\{include\} (\S+)$", flags=re.M)


def included():
    """The files that pages show as their own."""
    for path in pages.pages():
        for name in INCLUDE.findall(path.read_text()):
            yield (path.parent / name).resolve()


SHOWN = [*pages.pages(), *included()]
DOCUMENTS = {path.relative_to(pages.ROOT).as_posix(): path for path in SHOWN}


def cells(line):
    """The cells of a row; a bar behind a backslash is one of its text."""
    return re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))


def tables(text):
    """Every table as the lists of the cells of its rows, its header first."""
    lines = text.splitlines()
    for at, line in enumerate(lines):
        if at and "|" in line and RULE.match(line) and "|" in lines[at - 1]:
            end = at
            while end < len(lines) and "|" in lines[end]:
                end += 1
            yield [cells(row) for row in (lines[at - 1], *lines[at + 1 : end])]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_table_has_at_most_four_columns_and_rows_as_wide_as_its_header(name):
    for header, *rows in tables(DOCUMENTS[name].read_text()):
        assert len(header) <= MOST, header
        assert rows
        assert not [row for row in rows if len(row) != len(header)]


def test_the_tables_of_results_are_among_them():
    assert {"benchmarks/README.md", "benchmarks/quality/README.md"} <= DOCUMENTS.keys()
    for name in ("README.md", "benchmarks/README.md", "docs/results/bbob.md"):
        assert list(tables(DOCUMENTS[name].read_text()))


@pytest.mark.parametrize(
    ("text", "widths"),
    [
        ("| a | b |\n| --- | --- |\n| 1 | 2 |\n", [2]),
        ("a | b | c | d | e\n---|---|---|---|---\n1 | 2 | 3 | 4 | 5\n", [5]),
        ("| a |\n|:---:|\n| 1 \\| 2 |\n\ntext | more\n", [1]),
        ("a\n---\nb | c\n", []),
    ],
)
def test_columns_are_counted(text, widths):
    found = list(tables(text))
    assert [len(header) for header, *_ in found] == widths
    assert all(len(row) == len(header) for header, *rows in found for row in rows)


def test_what_we_have_and_others_lack_names_its_tests():
    (table,) = tables(DOCUMENTS["docs/results/compared.md"].read_text())
    ours = [row[0].strip() for row in table[1:]]
    assert len(ours) > 15
    for cell in ours:
        named = re.findall(r"`(\w+_test)`", cell)
        assert bool(named) != cell.endswith(": -"), cell
        assert not [name for name in named if not (pages.ROOT / f"tests/{name}.py").exists()]

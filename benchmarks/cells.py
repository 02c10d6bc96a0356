"""Tables of Markdown, of at most four columns, and what their cells say."""

from typing import Any

Rows = list[list[str]]
# Title, header and rows.
Table = tuple[str, list[str], Rows]


def markdown(header: list[str], rows: Rows) -> str:
    """A table for a README."""
    ruled = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(row) + " |\n" for row in ruled)


def titled(tables: list[Table]) -> str:
    """Tables with their titles above them."""
    return "\n".join(f"{title}:\n\n{markdown(header, rows)}" for title, header, rows in tables)


def replaced(document: str, start: str, end: str, text: str) -> str:
    """A document with another text between two marks."""
    before, rest = document.split(start)
    _, after = rest.split(end)
    return f"{before}{start}\n{text}\n{end}{after}"


def pivot(rows: list[dict[str, Any]], label: str, across: str, columns: Any) -> Rows:
    """A row for each label, a format of the fields of rows; the ratios of some go across it."""
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        cells.setdefault(label.format(**row), {})[row[across]] = ratio(row)
    return [[name, *(found[column] for column in columns)] for name, found in cells.items()]


def ratio(row: dict[str, Any], name: str = "ratio") -> str:
    """A median with its quartiles."""
    return spread(row[name]["median"], row[name]["low"], row[name]["high"])


def spread(median: float, low: float, high: float, *, digits: int = 2) -> str:
    """The same, of numbers."""
    return f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def beside(*cells: str | None) -> str:
    """Figures that belong together, in one cell; nothing if there are none."""
    return "; ".join(cell or "-" for cell in cells) if any(cells) else ""


def beside_formula(found: float | None, formula: float) -> str:
    """What was found, what the formula says, and their ratio if the formula is not zero."""
    if found is None:
        return f"does not fit; {gigabytes(formula)}"
    over = f"; {found / formula:.2f}" if formula else ""
    return f"{gigabytes(found)}; {gigabytes(formula)}{over}"


def gigabytes(size: float) -> str:
    """A number of bytes."""
    return f"{size / 1e6:.1f} MB" if 0 < size < 1e8 else f"{size / 1e9:.2f} GB"

"""A table as typed cells; Markdown, TeX, the terminal and the report each render the same ones."""

from dataclasses import dataclass

_TEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#",
        "±": r"$\pm$", "×": r"$\times$", "Δ": r"$\Delta$"}  # fmt: skip


@dataclass(frozen=True)
class TableCell:
    """One cell: its text, and what it is sorted by."""

    main: str
    number: float | None = None
    """Sorting value; None: sorted by its text, or last among numbers."""
    detail: str = ""
    """Interval or half interval after the number."""
    is_bold: bool = False
    is_faint: bool = False
    """True if the number does not differ from 0."""

    @property
    def text(self) -> str:
        """The cell without markup: `77.0 ± 2.2`."""
        return f"{self.main} {self.detail}".rstrip()


MISSING = TableCell("-")


@dataclass(frozen=True)
class Grid:
    """Headings and rows of cells; the first column names the rows."""

    headings: list[str]
    rows: list[list[TableCell]]

    @property
    def texts(self) -> list[list[str]]:
        """Rows of plain text."""
        return [[cell.text for cell in row] for row in self.rows]

    @property
    def kinds(self) -> list[str]:
        """`text`, `number` or `difference`, column by column."""
        columns = zip(self.headings[1:], list(zip(*self.rows, strict=True))[1:], strict=True)
        return ["text", *(_kind(heading, cells) for heading, cells in columns)]

    def markdown(self) -> str:
        """The table with pipes, numbers to the right."""
        rule = ["---"] + ["---:"] * (len(self.headings) - 1)
        rows = [self.headings, rule, *(list(map(_markdown, row)) for row in self.rows)]
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)

    def tex(self) -> str:
        """A `tabular` for a paper that loads `booktabs`."""
        rows = [" & ".join(map(_tex, row)) + r" \\" for row in self.rows]
        headings = " & ".join(_tex(TableCell(heading)) for heading in self.headings) + r" \\"
        return "\n".join(
            [rf"\begin{{tabular}}{{l{'r' * (len(self.headings) - 1)}}}", r"\toprule", headings,
             r"\midrule", *rows, r"\bottomrule", r"\end{tabular}", ""]
        )  # fmt: skip


def _kind(heading: str, cells: tuple[TableCell, ...]) -> str:
    if any(cell.number is None for cell in cells if cell != MISSING):
        return "text"
    return "difference" if heading.startswith("Δ") else "number"


def _markdown(cell: TableCell) -> str:
    emphasis = "**" if cell.is_bold else ""
    return f"{emphasis}{cell.text}{emphasis}".replace("|", r"\|")


def _tex(cell: TableCell) -> str:
    text = cell.text
    for plain, escaped in _TEX.items():
        text = text.replace(plain, escaped)
    return rf"\textbf{{{text}}}" if cell.is_bold else text

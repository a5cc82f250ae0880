"""Tables of text: aligned for a terminal, or in Markdown for a page."""

from __future__ import annotations

from collections.abc import Sequence

Rows = Sequence[Sequence[object]]  # the first is the heading; all of one length


def aligned(rows: Rows, words: int = 1) -> str:
    """Columns two spaces apart; the first `words` stand to the left, figures to the right."""
    text = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*text, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i < words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in text
    ]
    return "\n".join(line.rstrip() for line in lines)


def markdown(rows: Rows) -> str:
    """A Markdown table."""
    heading, *others = (f"| {' | '.join(map(str, row))} |" for row in rows)
    return "\n".join([heading, "|" + "---|" * len(rows[0]), *others])

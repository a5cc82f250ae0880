"""The checker of docs/speculative_decoding_theory.md: does something vouch for each of its numbers?

The document vouches for its numbers in HTML comments, each for the passage before it, back to the
comment or heading above:

    <!-- given: K = 4 -->                   a definition: the number stands in the passage
    <!-- check: tau(0.8, K) = 3.36 -->      a result: it stands there and is right as printed
    <!-- table: a | s = tau(a, 1) | s/2 --> one entry a column: a bare name is an input, an
                                            expression is checked in each row; a name keeps what
                                            is printed, for the row and as `column["s"]`
    <!-- distributions: p -->               a table of probabilities: each row adds up to 1

Expressions are Python, their numerals exact fractions, their functions those of `theory_formulas`.
A number that nothing vouches for is a problem, except 0, 1 and 2. Code, links and headings are not
looked at.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import cache

from tests import theory_formulas

FREE = {"0", "1", "2"}
NUMBER = re.compile(r"(?<![A-Za-z_\d.])\d+(?:\.\d+)?")
COMMENT = re.compile(r"<!-- (\w+): (.*?) -->", re.S)
PASSAGE_END = re.compile(r"(?:<!--.*?-->\s*)+|^#[^\n]*$", re.S | re.M)
UNREAD = re.compile(r"`[^`]*`|\[[^\]]*\]\([^)]*\)|^ *\d+\.(?= )", re.M)  # code, links, list numbers


class Document:
    """What was found in a text: `problems`, one line each; `names` it gives; `inputs` of tables."""

    def __init__(self, text: str):
        self.problems: list[str] = []
        self.inputs: list[str] = []
        self.names: dict = {**vars(theory_formulas), "column": {}}
        start = 0
        for end in [*PASSAGE_END.finditer(text), None]:
            self._read_passage(text[start : end.start() if end else None], end[0] if end else "")
            start = end.end() if end else None

    def _read_passage(self, passage: str, comments: str) -> None:
        prose = UNREAD.sub(" ", passage)
        numbers = set(NUMBER.findall(prose))
        vouched = set(FREE)
        for kind, body in COMMENT.findall(comments):
            if kind in ("table", "distributions"):
                header, rows = table_in(passage)
                vouched.update(cell for row in rows for cell in row)
                if kind == "table":
                    self._check_table(body.split(" | "), rows)
                else:
                    self._check_distributions(body, header, rows)
                continue
            for entry in body.split("; "):
                left, _, printed = entry.rpartition(" = ")
                self._check_entry(kind, left, printed)
                if printed not in (numbers if NUMBER.fullmatch(printed) else prose):
                    self.problems.append(f"{entry}: {printed} doesn't stand in the passage before")
                vouched.add(printed)
        for number in sorted(numbers - vouched):
            self.problems.append(f"nothing vouches for {number} in: {passage.strip()[:60]}…")

    def _check_entry(self, kind: str, left: str, printed: str) -> None:
        if kind == "check":
            self._check_result(left, printed, self.names)
        elif self.names.setdefault(left, Fraction(printed)) != Fraction(printed):
            self.problems.append(f"given: {left} = {printed}, but it is another number above")

    def _check_result(self, expression: str, printed: str, names: dict) -> None:
        value = evaluate(expression, names)
        if not is_right(value, printed):
            shown = value if isinstance(value, str) else f"{float(value):.4f}"
            self.problems.append(f"{expression} = {printed}: it is {shown}")

    def _check_table(self, entries: list[str], rows: list[list[str]]) -> None:
        columns: dict[str, list] = {}
        for row in rows:
            names = dict(self.names)
            for entry, cell in zip(entries, row, strict=True):
                name, _, expression = re.fullmatch(r"(?:(\w+)( = |$))?(.*)", entry).groups()
                if expression:
                    self._check_result(expression, cell, names)
                else:
                    self.inputs.append(cell)
                if name:
                    names[name] = value_of(cell)
                    columns.setdefault(name, []).append(names[name])
        self.names["column"].update(columns)

    def _check_distributions(self, name: str, header: list[str], rows: list[list[str]]) -> None:
        self.names[name] = {
            word: dict(zip(header[1:], map(Fraction, cells), strict=True)) for word, *cells in rows
        }
        for word, row in self.names[name].items():
            if sum(row.values()) != 1:
                self.problems.append(f"{name} after {word} adds up to {float(sum(row.values()))}")


def table_in(passage: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the last table of a passage, as lists of cells."""
    lines = re.findall(r"(?:^\|.*\|$\n?)+", passage, re.M)[-1].splitlines()
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return header, rows


def evaluate(expression: str, names: dict):
    return eval(compiled(expression), {}, names)


@cache
def compiled(expression: str):
    exact = re.sub(r"\b\d+(?:\.\d+)?\b", lambda m: f"Fraction('{m[0]}')", expression)
    return compile(exact, expression, "eval")


def value_of(printed: str) -> Fraction | str:
    return Fraction(printed) if NUMBER.fullmatch(printed) else printed


def is_right(value: Fraction | float | str, printed: str) -> bool:
    """Text is equal; a number is within half a unit of the last digit printed."""
    if isinstance(value, str) or not NUMBER.fullmatch(printed):
        return value == printed
    decimals = len(printed.partition(".")[2])
    return abs(value - Fraction(printed)) <= Fraction(1, 2 * 10**decimals) + Fraction(1, 10**12)


def visible_numbers(text: str) -> list[tuple[int, str]]:
    """Place and spelling of each number that something must vouch for."""
    hidden = rf"<!--.*?-->|^#[^\n]*$|{UNREAD.pattern}"
    shown = re.sub(hidden, lambda m: " " * len(m[0]), text, flags=re.S | re.M)
    return [(m.start(), m[0]) for m in NUMBER.finditer(shown) if m[0] not in FREE]

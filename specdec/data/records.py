"""Records of a prompt file, and the prompts that a template makes of them."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

from specdec.utils.errors import SpecdecError


class Text(NamedTuple):
    """A record's field, and the prompt made of it."""

    field: str
    prompt: str


def records(path: Path, content: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) of a JSON array, of one under `data`, or of JSON lines; gzipped or not.

    A record that is but a text stands for one whose field `text` it is.
    """
    try:
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        text = content.decode("utf-8-sig")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise SpecdecError(
            f"{path} is no JSON text ({error}): give JSON or JSON lines in UTF-8, gzipped or not"
        ) from error
    listed = _listed(text, path)
    if listed is not None:
        items = [(f"record {i}", item) for i, item in enumerate(listed, 1)]
    else:
        lines = ((f"line {i}", line) for i, line in enumerate(text.split("\n"), 1))
        items = ((place, _parse(line, f"{path}, {place}")) for place, line in lines if line.strip())
    for place, item in items:
        if isinstance(item, str):
            item = {"text": item}
        if not isinstance(item, dict):
            raise SpecdecError(
                f"{path}, {place}: found {str(item)[:40]!r} where a record is needed: "
                "each is a text, or an object with named fields"
            )
        yield place, item


def _listed(text: str, path: Path) -> list[Any] | None:
    """The records of a file that holds them in a list; None where each has a line of its own."""
    if text.lstrip().startswith("["):
        return _parse(text, str(path))
    try:
        whole = json.loads(text)
    except ValueError:
        return None
    data = whole.get("data") if isinstance(whole, dict) else None
    return data if isinstance(data, list) else None


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise SpecdecError(f"{where}: not JSON ({error}): mend it or take it out") from error


def render(record: dict[str, Any], field: str, template: str, where: str) -> Text:
    """The text of a record. Fields left empty leave no blank space at the ends of the prompt.

    Raises SpecdecError, naming the place, for a field that isn't there or is no Unicode text.
    """
    text = _look_up(record, field, where)
    parts, has_gap = [], False
    for literal, name in template_fields(template, where):
        parts.append(literal)
        if name is not None:
            value = text if name == "text" else _look_up(record, name, where)
            has_gap |= not value
            parts.append(value)
    prompt = "".join(parts)
    check_unicode(text + prompt, where)
    return Text(text, prompt.strip() if has_gap else prompt)


def check_unicode(text: str, where: str) -> None:
    """Raise SpecdecError for half a character, which JSON can write and no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SpecdecError(
            f"{where}: \\u{ord(text[error.start]):04x} alone is half a character, so this is no "
            "Unicode text: mend it or take it out"
        ) from error


def _look_up(record: dict[str, Any], dotted: str, where: str) -> str:
    """The text at a dotted field, a number standing for a place in a list; null is empty."""
    value: Any = record
    for name in dotted.split("."):
        try:
            value = value[int(name)] if isinstance(value, list) else value[name]
        except (KeyError, IndexError, TypeError, ValueError):
            raise SpecdecError(
                f"{where}: no field {dotted!r}; there are: {', '.join(_field_names(record))}"
            ) from None
    if value is None:
        return ""
    if not isinstance(value, str):
        raise SpecdecError(
            f"{where}: field {dotted!r} is a {type(value).__name__}, not text; "
            f"there are: {', '.join(_field_names(record))}"
        )
    return value


def _field_names(value: Any, prefix: str = "") -> list[str]:
    """The dotted names of what a record holds; of a list, the first element stands for all."""
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = [("0", value[0])] if value else []
    else:
        return [prefix]
    return [
        name for key, item in inner for name in _field_names(item, f"{prefix}.{key}".lstrip("."))
    ]


def template_fields(template: str, where: str) -> list[tuple[str, str | None]]:
    """(plain text, name of the field after it) for each part of a template."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise SpecdecError(
            f"{where}: template {template!r}: {error}: plain braces are written twice"
        ) from error
    if all(name is None for _, name, _, _ in parts):
        raise SpecdecError(f"{where}: template {template!r} names no field: write {{text}} in it")
    if any(
        name == "" or spec or conversion for _, name, spec, conversion in parts if name is not None
    ):
        raise SpecdecError(
            f"{where}: template {template!r}: write a field as {{text}} or {{a.dotted.name}}, "
            "plain braces twice"
        )
    return [(literal, name) for literal, name, _, _ in parts]

"""One way to read YAML: what two readers would take for different values is refused.

PyYAML, which Snakemake reads a configuration with too, speaks YAML 1.1 and keeps the last of two
equal keys. A number that YAML 1.2 reads otherwise (`010` is 8 to the one and 10 to the other, `1e3`
a text and 1000) and a key given twice are mistakes that nobody would see.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from specdec.utils.errors import SpecdecError, one_line

# https://yaml.org/spec/1.2.2/#1032-tag-resolution
INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def read_yaml(path: Path | str, what: str = "the file") -> Any:
    """What a YAML file holds, None where it is empty; `what` it is called in an error.

    Raises SpecdecError with the file and, where it is known, the line: a file that can't be read or
    is no YAML, a key given twice, a number that is one in YAML 1.1 or in YAML 1.2 alone.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SpecdecError(f"{path}: cannot read {what} ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise SpecdecError(f"{path}: not YAML: no text in UTF-8 ({error.reason})") from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        for node in _nodes(root):
            _check(node, path)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecdecError(f"{path}{_place(error)}: not YAML: {one_line(error)}") from error


def _nodes(node: yaml.Node | None) -> Iterator[yaml.Node]:
    """A node and all below it, in the order of the file."""
    if node is None:
        return
    yield node
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _nodes(key)
            yield from _nodes(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _nodes(item)


def _check(node: yaml.Node, path: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        _check_keys(node, path)
    elif isinstance(node, yaml.ScalarNode) and node.style is None:  # quoted ones are texts to all
        old, new = _in_yaml_1_1(node), _in_yaml_1_2(node.value)
        if old != new:
            hint = " (with a point)" if isinstance(old, str) and "." not in old else ""
            raise SpecdecError(
                f"{path}, line {node.start_mark.line + 1}: {node.value} is {old!r} in YAML 1.1 and "
                f"{new!r} in YAML 1.2: write a number as {_plain(new, old)}{hint}, a text in quotes"
            )


def _check_keys(node: yaml.MappingNode, path: Path) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode):
            if key.value in lines:
                raise SpecdecError(
                    f"{path}, line {line}: '{key.value}' is there already, in line "
                    f"{lines[key.value]}: keep one of them"
                )
            lines[key.value] = line


def _in_yaml_1_1(node: yaml.ScalarNode) -> float | str:
    """A number as PyYAML reads it; anything else as it is written."""
    if node.tag not in NUMBERS or SPECIAL.fullmatch(node.value):
        return node.value
    return yaml.safe_load(node.value)


def _in_yaml_1_2(text: str) -> float | str:
    if INTEGER.fullmatch(text):
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    return float(text) if FLOAT.fullmatch(text) else text


def _plain(*readings: float | str) -> str:
    """The first reading that is a number, in a form that both versions read alike."""
    number = next(reading for reading in readings if not isinstance(reading, str))
    if isinstance(number, int) or "e" not in repr(number):
        return repr(number)
    mantissa, exponent = repr(number).split("e")
    return f"{mantissa}{'' if '.' in mantissa else '.0'}e{int(exponent):+d}"


def _place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f", line {mark.line + 1}" if mark else ""

"""A document compared with its JSON schema: the first mistake, as a place and a sentence."""

import math
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.exceptions import best_match
from jsonschema.validators import extend

from specdec.utils.errors import one_line
from specdec.utils.yaml_reader import read_yaml


class Mistake(NamedTuple):
    """`path` holds the keys and places that lead to it; `text` names them too."""

    path: list[str | int]
    text: str


def _is_finite_number(checker: Any, value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


_Validator = extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("number", _is_finite_number),
)


def find_mistake(document: Any, schema_path: Path) -> Mistake | None:
    """The first thing in a document that its schema, a YAML file, doesn't allow."""
    errors = _Validator(read_yaml(schema_path)).iter_errors(document)
    first = min(errors, key=lambda error: [str(key) for key in error.absolute_path], default=None)
    if first is None:
        return None
    error = best_match([first])  # where alternatives fail, what failed in the nearest of them
    path, message = list(error.absolute_path), _explain(error)
    if error.validator == "additionalProperties":
        path.append(_unknown_key(error))
    place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return Mistake(path, f"{place.lstrip('.')}: {message}".removeprefix(": "))


def _unknown_key(error: ValidationError) -> str:
    return next(str(key) for key in error.instance if key not in error.schema["properties"])


def _explain(error: ValidationError) -> str:
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        close = get_close_matches(_unknown_key(error), known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
        return f"unknown key; {hint}"
    if error.validator == "pattern":  # a person reads what the schema says, not the pattern
        return f"{error.instance!r} is not {error.schema['description']}"
    if isinstance(error.instance, float) and not math.isfinite(error.instance):
        return f"{error.instance} is not a finite number"
    return one_line(error.message)

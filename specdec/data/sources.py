"""Where prompts come from: a data set of the hub, a local file, or the built-in ones.

A source is written in a configuration as `builtin`, as the name of a known data set, or as a
mapping with `hub: NAME` or `path: FILE` and any of the other fields of `Source`.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from specdec.data.hub import HubError, load_dataset
from specdec.data.records import Text, records, render, template_fields
from specdec.utils.errors import SpecdecError

BUILTIN = "builtin"
BUILTIN_FOLDER = Path(__file__).with_name("builtin")
SUMMARIZE = "{text}\n\nSummarize the above article:"
BUILTIN_TEMPLATES = {"code": "{text}", "conversation": "{text}", "summarization": SUMMARIZE}

# Data sets that a configuration may name without saying how to read them.
KNOWN_HUB = {
    "openai/openai_humaneval": {"split": "test", "field": "prompt"},
    "tatsu-lab/alpaca": {
        "split": "train",
        "field": "instruction",
        "template": "{text}\n\n{input}",
    },
    "abisee/cnn_dailymail": {
        "config": "3.0.0",
        "split": "test",
        "field": "article",
        "template": SUMMARIZE,
        "max_field_tokens": 512,
    },
}
HUB_KEYS = {"hub", "config", "split", "revision", "fallback"}
FILE_KEYS = {"path"}
SHARED_KEYS = {"field", "template", "max_field_tokens"}


@dataclass(frozen=True)
class Source:
    """How to get the prompts of one domain. Built-in where neither `hub` nor `path` is set.

    `field` is the text of a record, dotted to reach inside (`turns.0`). `template` is the prompt
    made of it: `{text}` stands for the field, `{other.field}` for another field of the record;
    double braces are plain ones. `max_field_tokens` bounds the field alone. `fallback: builtin`
    allows the built-in prompts where the hub's can't be had.
    """

    domain: str
    hub: str | None = None
    path: str | None = None
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    field: str = "text"
    template: str = "{text}"
    max_field_tokens: int | None = None
    fallback: str | None = None


@dataclass(frozen=True)
class SourceTexts:
    """The texts of a source in its own order; `origin` says in a data card where they are from."""

    texts: Sequence[Text]
    origin: dict[str, Any]
    max_field_tokens: int | None = None


def parse_source(domain: str, spec: str | dict[str, Any]) -> Source:
    """The source that a configuration means by `spec`. Raises SpecdecError, naming the domain."""
    where = f"sources.{domain}"
    if spec == BUILTIN:
        return Source(domain)
    if isinstance(spec, str):
        if spec not in KNOWN_HUB:
            known = ", ".join([BUILTIN, *KNOWN_HUB])
            raise SpecdecError(
                f"{where}: {spec!r} is none of {known}: write {{hub: NAME, field: …}} for another "
                "data set, {path: FILE, field: …} for a file"
            )
        spec = {"hub": spec}
    if not isinstance(spec, dict) or ("hub" in spec) == ("path" in spec):
        raise SpecdecError(f"{where}: needs either `hub` or `path`, found {spec!r}")
    allowed = SHARED_KEYS | (HUB_KEYS if "hub" in spec else FILE_KEYS)
    if unknown := sorted(set(spec) - allowed):
        raise SpecdecError(
            f"{where}: no key {unknown[0]!r} here; allowed: {', '.join(sorted(allowed))}"
        )
    stated = {key: value for key, value in spec.items() if value is not None}
    spec = KNOWN_HUB.get(spec.get("hub"), {}) | stated
    kinds = {field.name: str for field in fields(Source)} | {"max_field_tokens": int}
    for key, value in spec.items():
        if not isinstance(value, kinds[key]) or value in ("", 0):
            raise SpecdecError(f"{where}.{key}: {value!r} is no {kinds[key].__name__} to use here")
    if spec.get("fallback", BUILTIN) != BUILTIN:
        raise SpecdecError(f"{where}.fallback: {spec['fallback']!r} is not {BUILTIN!r}")
    template_fields(spec.get("template", "{text}"), f"{where}.template")
    return Source(domain, **spec)


def load_texts(source: Source, warn: Callable[[str], None]) -> SourceTexts:
    """The texts of a source; `warn` is told when the built-in ones take the hub's place.

    Raises SpecdecError where the source can't be read, HubError (one of those) where the hub
    doesn't hand it out and the source names no fallback.
    """
    if source.path:
        return _file_texts(source)
    if not source.hub:
        return _builtin_texts(source.domain)
    try:
        return _hub_texts(source)
    except HubError as error:
        if source.fallback is None:
            raise HubError(f"sources.{source.domain}: {error}") from error
        warn(f"WARNING: {error}")
        warn(f"WARNING: {source.domain}: BUILT-IN prompts take the place of {source.hub}")
    builtin = _builtin_texts(source.domain)
    label = f"builtin (in place of {source.hub})"
    return SourceTexts(builtin.texts, builtin.origin | {"label": label, "fallback_for": source.hub})


def _builtin_texts(domain: str) -> SourceTexts:
    path = BUILTIN_FOLDER / f"{domain}.json"
    if domain not in BUILTIN_TEMPLATES:
        raise SpecdecError(
            f"sources.{domain}: built-in prompts exist for {', '.join(BUILTIN_TEMPLATES)}, "
            f"not for {domain!r}: name a hub data set or a file"
        )
    content = path.read_bytes()
    template = BUILTIN_TEMPLATES[domain]
    bodies = ["\n".join(lines) for lines in json.loads(content)["prompts"]]
    texts = [Text(body, template.replace("{text}", body)) for body in bodies]
    version = hashlib.sha256(content).hexdigest()[:16]
    return SourceTexts(texts, {"kind": "builtin", "label": "builtin", "version": version})


def _file_texts(source: Source) -> SourceTexts:
    path = Path(source.path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SpecdecError(
            f"sources.{source.domain}: {path} can't be read ({error.strerror}): check the path"
            f"{'' if path.is_absolute() else f', which was looked for in {Path.cwd()}'}"
        ) from error
    texts = [
        render(record, source.field, source.template, f"{path}, {place}")
        for place, record in records(path, content)
    ]
    if not texts:
        raise SpecdecError(f"{path} holds no records: give a file with one record a prompt")
    origin = {
        "kind": "file",
        "label": path.name,
        "path": source.path,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    return SourceTexts(texts, origin | _reading(source), source.max_field_tokens)


def _hub_texts(source: Source) -> SourceTexts:
    rows, revision = load_dataset(source.hub, source.config, source.split, source.revision)
    origin = {
        "kind": "hub",
        "label": source.hub,
        "dataset": source.hub,
        "config": source.config,
        "split": source.split,
        "revision": revision,
    }
    return SourceTexts(_HubTexts(source, rows), origin | _reading(source), source.max_field_tokens)


class _HubTexts(Sequence):
    """Rows of a data set, made into texts only when asked for: there may be hundred thousands."""

    def __init__(self, source: Source, rows: Any):
        self.source, self.rows = source, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Text:
        where = f"{self.source.hub} ({self.source.split}), row {index}"
        return render(self.rows[index], self.source.field, self.source.template, where)


def _reading(source: Source) -> dict[str, Any]:
    """The part of a data card that says how records became prompts."""
    return {
        "field": source.field,
        "template": source.template,
        "max_field_tokens": source.max_field_tokens,
    }

"""Records: one line of JSONL per generation, saying what was asked, what came out, and where.

A record is one flat JSON object: `schema_version`, `config_hash`, the fields of BenchmarkConfig
(under the names in `RECORD_NAMES` where they differ), those of GenerationResult, and those that
`make_record` takes by keyword.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, BinaryIO

from specdec.profiling.metrics import BenchmarkConfig, GenerationResult
from specdec.utils.errors import SpecdecError

SCHEMA_VERSION = 1

#: Fields of BenchmarkConfig that a record calls otherwise: shorter, or, for the engine, because
#: `engine` is the path that GenerationResult says was really taken.
RECORD_NAMES = {
    "model_pair_name": "pair",
    "prompt_domain": "domain",
    "engine": "engine_requested",
}


def make_record(
    config: BenchmarkConfig,
    result: GenerationResult,
    *,
    job_K: int,
    paired: bool,
    order_index: int,
    prompt_tokens: int,
    text: str,
    code_digest: str,
    environment: dict[str, Any],
    ignored_settings: Iterable[str] = (),
    weights: dict[str, str | None] | None = None,
) -> dict[str, Any]:
    """The record of one generation.

    `job_K` is the K of the job that measured it: a paired job of K = 4 gives two records per
    prompt, K = 0 and K = 4, both with `job_K` 4. `order_index` is 0 for the one of the two that ran
    first. `prompt_tokens` counts the prompt's tokens, `text` is the generated text, `environment`
    is `specdec.utils.reproducibility.capture_environment`'s dictionary, `ignored_settings` that of
    the target's wrapper, `weights` holds `draft_weights` and `target_weights`: what they are where
    the dtype alone doesn't tell (`specdec.models.loading.loader.describe_weights`).
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "config_hash": config.config_hash(),
        **{RECORD_NAMES.get(name, name): value for name, value in config.to_dict().items()},
        **result.to_dict(),
        "job_K": job_K,
        "paired": paired,
        "order_index": order_index,
        "prompt_tokens": prompt_tokens,
        "text": text,
        "code_digest": code_digest,
        "environment": environment,
        "ignored_settings": list(ignored_settings),
        **(weights or {}),
    }


def request_of(record: dict[str, Any]) -> BenchmarkConfig:
    """What a record's generation was asked for; fields that an older record lacks at their default.

    Raises KeyError for one without a default.
    """
    names = {f.name: RECORD_NAMES.get(f.name, f.name) for f in fields(BenchmarkConfig)}
    required = {f.name for f in fields(BenchmarkConfig) if f.default is MISSING}
    return BenchmarkConfig(
        **{
            name: record[stored]
            for name, stored in names.items()
            if stored in record or name in required
        }
    )


def read_records(path: Path | str, tolerate_torn_tail: bool = False) -> list[dict[str, Any]]:
    """All records of a file; empty lines are passed over.

    With `tolerate_torn_tail` a last line that was cut while being written is left out; any other
    broken line is a SpecdecError with file and line number.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise SpecdecError(f"{path}: cannot read the records ({error.strerror})") from error
    if tolerate_torn_tail and not _is_record(lines[-1]):
        lines.pop()
    numbered = enumerate(lines, start=1)
    return [_parse_record(line, f"{path}:{number}") for number, line in numbered if line.strip()]


def append_records(path: Path | str, records: Iterable[dict[str, Any]]) -> None:
    """Add records to the end of a file in one write, on disk when this returns.

    A torn last line, left by a process that was killed while writing, is cut off first.
    """
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        _mend_tail(file)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _parse_record(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise SpecdecError(
            f"{where}: not a line of JSON ({error}); delete the file and run the study again"
        ) from error
    if not isinstance(record, dict):
        raise SpecdecError(f"{where}: a record must be a JSON object, not {line[:40]!r}")
    if record.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
        raise SpecdecError(
            f"{where}: record of schema version {record['schema_version']}, this code reads "
            f"{SCHEMA_VERSION}; delete the file to measure again"
        )
    return record


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _mend_tail(file: BinaryIO) -> None:
    """Make a file end in a whole line: end a complete last record, cut off a torn one."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    tail = file.read().rpartition(b"\n")[2]
    if _is_record(tail):
        file.write(b"\n")
    else:
        file.truncate(size - len(tail))

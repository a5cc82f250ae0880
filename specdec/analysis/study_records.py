"""The records of a study: read, and refused where they are not whole or not of one study.

A table made of what is left of a set of records would look like any other, with narrower or wrong
intervals; so it isn't made.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from specdec.profiling.metrics import BenchmarkConfig
from specdec.profiling.records import read_records, request_of
from specdec.utils.errors import SpecdecError

Record = dict[str, Any]

#: A decode job's file, as the study names it, below `runs/<pair>/<domain>/`.
FILE_NAME = re.compile(
    r"T(?P<temperature>[^_]+)_K(?P<job_K>\d+)_(?P<engine_requested>[a-z]+)\.jsonl"
)
#: What all records have in common that share these fields.
ONE_VALUE = {
    (): ["seed", "max_new_tokens"],
    ("pair",): [
        *("draft_model", "target_model", "draft_dtype", "target_dtype", "draft_revision"),
        *("target_revision", "tokenizer", "top_k", "top_p", "vocabulary", "coupled"),
        *("draft_chat", "target_chat", "draft_prompt", "device_type"),
    ],
    ("pair", "domain"): ["prompt_source", "job_prompts"],
    ("pair", "domain", "prompt_id"): ["prompt_digest"],
    ("file",): ["pair", "domain", "temperature", "engine_requested", "job_K", "paired"],
}
AGAIN = "delete the file and run the study again"


def read_study(run_files: list[Path]) -> list[Record]:
    """All records of the files, each with its `file` and whether its `acceptance` is real.

    Raises:
        SpecdecError: where a file is broken, holds fewer generations than its job decoded, answers
            another request than its name or the other records say, or repeats one.
    """
    records = []
    for path in sorted(map(Path, run_files)):
        records += _read_job(path)
    if not records:
        raise SpecdecError("no records to make tables of: no run file was given")
    _check_together(records)
    return records


def _read_job(path: Path) -> list[Record]:
    records = read_records(path)
    if not records:
        raise SpecdecError(f"{path}: there are no records in it; {AGAIN}")
    try:
        for record in records:
            record["file"] = str(path)
            _check_request(record)
        _check_place(path, records[0])
        _check_whole(path, records)
    except KeyError as error:
        raise SpecdecError(f"{path}: a record without {error}; {AGAIN}") from error
    # A baseline belongs to the run it was measured in: beside forced acceptance it counts as such.
    forced = {record["synthetic_acceptance"] for record in records} - {None}
    for record in records:
        rate = record["synthetic_acceptance"]
        if rate is None and len(forced) == 1:
            (rate,) = forced
        record["acceptance"] = "measured" if rate is None else f"synthetic {rate:g}"
    return records


def _check_request(record: Record) -> None:
    """The request that a record holds is the one that its hash was made of."""
    request: BenchmarkConfig = request_of(record)
    if request.config_hash() != record["config_hash"]:
        raise SpecdecError(
            f"{record['file']}: {record['prompt_id']}, K = {record['K']}: the request (pair, "
            f"domain, K, temperature, budget, seed, …) isn't the one of its hash "
            f"{record['config_hash']}: it was edited; {AGAIN}"
        )


def _check_place(path: Path, record: Record) -> None:
    """A file that is named as the study names it holds what its name says."""
    named = FILE_NAME.fullmatch(path.name)
    if not named:
        return
    says: dict[str, Any] = named.groupdict()
    says |= {"temperature": float(says["temperature"]), "job_K": int(says["job_K"])}
    if len(path.parents) > 2 and path.parents[2].name == "runs":
        says |= {"pair": path.parents[1].name, "domain": path.parents[0].name}
    for name, value in says.items():
        if record[name] != value:
            raise SpecdecError(
                f"{path}: its name says {name} {value}, its records {record[name]}; {AGAIN}"
            )


def _check_whole(path: Path, records: list[Record]) -> None:
    """Each prompt of the job has each of its arms, once."""
    first = records[0]
    arms = {0, first["job_K"]} if first["paired"] else {first["job_K"]}
    found = Counter((record["prompt_id"], record["K"]) for record in records)
    prompts = list(dict.fromkeys(record["prompt_id"] for record in records))
    lacking = [f"K = {K} of {prompt}" for prompt in prompts for K in arms if not found[prompt, K]]
    expected = len(arms) * (first.get("job_prompts") or len(prompts))
    if lacking or len(found) != expected:
        what = ", ".join(lacking[:4]) + ", …" * (len(lacking) > 4)
        raise SpecdecError(
            f"{path}: {len(found)} of {expected} generations are there: {first['pair']}, "
            f"{first['domain']}, T = {first['temperature']:g}, K = {first['job_K']} lacks "
            f"{what or 'whole prompts'}; {AGAIN}"
        )


def _check_together(records: list[Record]) -> None:
    """What a comparison holds fixed is the same in all that are compared."""
    for shared, names in ONE_VALUE.items():
        seen: dict[tuple, Record] = {}
        for record in records:
            first = seen.setdefault(tuple(record[name] for name in shared), record)
            for name in names:
                if record.get(name) != first.get(name):
                    of = ", ".join(str(record[s]) for s in shared if s != "file")
                    raise SpecdecError(
                        f"{record['file']}: {name} {record.get(name)}, but {first.get(name)} in "
                        f"{first['file']}{f' ({of})' if of else ''}: records of two studies; make "
                        f"tables of one at a time, or {AGAIN}"
                    )

"""A study's configuration, checked against everything that is at hand before a job starts.

The workflow reads it so, a dry run too. Nothing here loads torch but the question for a GPU.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from specdec.data.sources import BUILTIN_TEMPLATES, load_texts, parse_source
from specdec.models.loading.hub import resolve_model
from specdec.models.registry import ModelPair, get_pair, needs_synthetic_acceptance
from specdec.utils.errors import SpecdecError
from specdec.utils.machine import check_threads
from specdec.utils.paths import SHIPPED
from specdec.utils.schema import find_mistake

SCHEMA_PATH = SHIPPED / "config/schemas/config.schema.yaml"


class StudyError(SpecdecError):
    """A mistake in a study's configuration; `key` is the one whose value must change."""

    def __init__(self, key: str | None, message: object) -> None:
        super().__init__(str(message))
        self.key = key


class StudyPair(NamedTuple):
    """A pair as a study runs it."""

    entry: ModelPair
    domains: list[str]
    draft_tokens: list[int]
    engines: list[str]
    synthetic_acceptance: float | None


def study_pairs(config: dict[str, Any], jobs_run_here: bool = True) -> dict[str, StudyPair]:
    """The pairs of a study by name.

    Where its jobs run on other machines, what this one has doesn't count.

    Raises:
        StudyError: for what the configuration says, SpecdecError for what it names.
    """
    mistake = find_mistake(config, SCHEMA_PATH)
    if mistake:
        raise StudyError(mistake.path[0] if mistake.path else None, mistake.text)
    if jobs_run_here:
        check_machine(config)
    pairs = read_pairs(config)
    for domain in {domain: None for pair in pairs.values() for domain in pair.domains}:
        check_source(config, domain)
    for name, pair in pairs.items():
        check_acceptance(config, name, pair)
        check_models(config, name, pair)
    return pairs


def registry_path(config: dict[str, Any]) -> str:
    """The file of pairs that a study names; the project's own lies with the project."""
    named = config["registry"]
    if named == "config/pairs.yaml" and not os.path.exists(named):
        return str(SHIPPED / named)
    return named


def check_machine(config: dict[str, Any]) -> None:
    """See that the timed jobs get the device and the threads that they ask for."""
    try:
        check_threads(config["threads"])
    except SpecdecError as error:
        raise StudyError("threads", error) from error
    if config["device"].startswith("cuda"):
        from specdec.models.loading.loader import resolve_device  # late: it loads torch

        try:
            resolve_device(config["device"])
        except SpecdecError as error:
            raise StudyError("device", f"device: {error}") from error


def read_pairs(config: dict[str, Any]) -> dict[str, StudyPair]:
    """The pairs by name; what a pair doesn't say itself, the study says."""
    pairs: dict[str, StudyPair] = {}
    for item in config["pairs"]:
        item = {"name": item} if isinstance(item, str) else item
        entry = get_pair(item["name"], registry_path(config))
        if entry.name in pairs:
            raise StudyError("pairs", f"pairs: '{entry.name}' is there twice")
        own = config | item
        engines = own["engine"] if isinstance(own["engine"], list) else [own["engine"]]
        forced = own.get("synthetic_acceptance")
        pairs[entry.name] = StudyPair(entry, own["domains"], own["draft_tokens"], engines, forced)
    return pairs


def check_source(config: dict[str, Any], domain: str) -> None:
    """See that a domain's prompts have a source, and that it holds enough if it is at hand."""
    if domain not in config["sources"]:
        raise StudyError("domains", f"domains: '{domain}' has no entry in sources")
    try:
        source = parse_source(domain, config["sources"][domain])
        if source.hub:
            return
        if source.path and not os.path.isfile(source.path):
            raise SpecdecError(f"sources.{domain}.path: there is no file {source.path}")
        if not source.path and domain not in BUILTIN_TEMPLATES:
            known = ", ".join(BUILTIN_TEMPLATES)
            raise SpecdecError(f"sources.{domain}: built-in prompts are for {known}")
        texts = load_texts(source, warn=print).texts
    except SpecdecError as error:
        raise StudyError("sources", error) from error
    wanted = config["prompts_per_domain"]
    different = len({text.prompt for text in texts if text.field.strip()})
    if different < wanted:
        raise StudyError(
            "prompts_per_domain",
            f"prompts_per_domain: {wanted} are asked for, and "
            f"{source.path or 'the built-in source'} has {different} different ones for {domain}",
        )


def check_acceptance(config: dict[str, Any], name: str, pair: StudyPair) -> None:
    """See that acceptance is forced where weights are random, and only in greedy decoding."""
    if pair.synthetic_acceptance is None and needs_synthetic_acceptance(pair.entry):
        raise StudyError(
            "pairs",
            f"pairs: '{name}' has random weights, whose acceptance says nothing: "
            "give synthetic_acceptance, e.g. 0.8",
        )
    if pair.synthetic_acceptance is not None and any(config["temperatures"]):
        raise StudyError(
            "temperatures",
            f"temperatures: '{name}' has synthetic_acceptance, which is for temperature 0 only",
        )


def check_models(config: dict[str, Any], name: str, pair: StudyPair) -> None:
    """See that each model is a folder that is there, or may be a name on the hub."""
    for side in (pair.entry.draft, pair.entry.target):
        try:
            if not side.has_random_weights:
                resolve_model(side.model)
        except SpecdecError as error:
            raise SpecdecError(f"{registry_path(config)}: {name}: {error}") from error

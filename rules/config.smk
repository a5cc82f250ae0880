"""The study's configuration, checked before anything runs: what is wrong is one line."""

import os
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import yaml
from jsonschema import Draft202012Validator

# This checkout's package and this interpreter, here and in every job. Where things lie goes to the
# jobs by their environment: their parameters hold what decides on a result, and nothing else.
sys.path.insert(0, workflow.basedir)
os.environ.update(
    PYTHONPATH=os.pathsep.join(filter(None, [workflow.basedir, os.getenv("PYTHONPATH")])),
    PATH=os.pathsep.join([os.path.dirname(sys.executable), os.getenv("PATH", os.defpath)]),
    SCRIPTS=os.path.join(workflow.basedir, "scripts"),
)

from specdec.data.sources import BUILTIN_TEMPLATES, parse_source
from specdec.models.hub import resolve_model
from specdec.models.registry import ModelPair, get_pair, needs_synthetic_acceptance
from specdec.utils.errors import SpecdecError
from specdec.utils.paths import PROJECT_ROOT


def stop(key, message):
    """End with one line that names the configuration file which decides on `key`."""
    overlays = len(workflow.overwrite_configfiles)
    files = workflow.configfiles[overlays:] + workflow.configfiles[:overlays]
    deciding = [file for file in files if key in (yaml.safe_load(Path(file).read_text()) or {})]
    on_command_line = key in dict(workflow.config_settings.config)
    where = "--config" if on_command_line else os.path.relpath((deciding or files)[-1])
    sys.exit(f"error: {where}: {message}")


def check_schema():
    """Compare the configuration with its schema."""
    schema = yaml.safe_load(Path(PROJECT_ROOT, "config/schemas/config.schema.yaml").read_text())
    errors = Draft202012Validator(schema).iter_errors(config)
    for error in sorted(errors, key=lambda error: str(error.absolute_path)):
        path, message = list(error.absolute_path), error.message
        if error.validator == "additionalProperties":
            known = list(error.schema["properties"])
            unknown = next(key for key in error.instance if key not in known)
            close = get_close_matches(str(unknown), known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
            path, message = [*path, unknown], f"unknown key; {hint}"
        place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
        stop(path[0] if path else None, f"{place.lstrip('.')}: {message}".removeprefix(": "))


def check_sources(domains):
    """See that each domain's prompts have a source, and that a source's file is there."""
    for domain in domains:
        if domain not in config["sources"]:
            stop("domains", f"domains: '{domain}' has no entry in sources")
        try:
            source = parse_source(domain, config["sources"][domain])
        except SpecdecError as error:
            stop("sources", error)
        if source.path and not os.path.isfile(source.path):
            stop("sources", f"sources.{domain}.path: there is no file {source.path}")
        if not (source.path or source.hub) and domain not in BUILTIN_TEMPLATES:
            known = ", ".join(BUILTIN_TEMPLATES)
            stop("sources", f"sources.{domain}: built-in prompts are for {known}")


class StudyPair(NamedTuple):
    """A pair as this study runs it."""

    entry: ModelPair
    domains: list[str]
    draft_tokens: list[int]
    engines: list[str]
    synthetic_acceptance: float | None


def read_pairs():
    """The study's pairs by name; what a pair doesn't say itself, the study says."""
    pairs = {}
    for item in config["pairs"]:
        item = {"name": item} if isinstance(item, str) else item
        try:
            entry = get_pair(item["name"], REGISTRY)
        except SpecdecError as error:
            sys.exit(f"error: {error}")
        if item["name"] in pairs:
            stop("pairs", f"pairs: '{entry.name}' is there twice")
        own = config | item
        engines = own["engine"] if isinstance(own["engine"], list) else [own["engine"]]
        forced = own.get("synthetic_acceptance")
        pairs[entry.name] = StudyPair(entry, own["domains"], own["draft_tokens"], engines, forced)
    return pairs


def check_acceptance():
    """See that acceptance is forced where weights are random, and only in greedy decoding."""
    for name, pair in PAIRS.items():
        if pair.synthetic_acceptance is None and needs_synthetic_acceptance(pair.entry):
            stop(
                "pairs",
                f"pairs: '{name}' has random weights, whose acceptance says nothing: "
                "give synthetic_acceptance, e.g. 0.8",
            )
        if pair.synthetic_acceptance is not None and any(config["temperatures"]):
            stop(
                "temperatures",
                f"temperatures: '{name}' has synthetic_acceptance, which is for temperature 0 only",
            )


def check_models():
    """See that each model is a folder that is there, or may be a name on the hub."""
    for name, pair in PAIRS.items():
        for side in (pair.entry.draft, pair.entry.target):
            try:
                if not side.has_random_weights:
                    resolve_model(side.model)
            except SpecdecError as error:
                sys.exit(f"error: {REGISTRY}: {name}: {error}")


check_schema()
REGISTRY = config["registry"]
if REGISTRY == "config/pairs.yaml" and not os.path.exists(REGISTRY):
    REGISTRY = str(PROJECT_ROOT / REGISTRY)
os.environ.update(REGISTRY=REGISTRY)
PAIRS = read_pairs()
check_sources({domain for pair in PAIRS.values() for domain in pair.domains})
check_acceptance()
check_models()

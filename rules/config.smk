"""The study's configuration, checked before anything runs: what is wrong is one line."""

import os
import sys
from pathlib import Path
from typing import NamedTuple

# This checkout's package and this interpreter, here and in every job. Where things lie goes to the
# jobs by their environment: their parameters hold what decides on a result, and nothing else.
sys.path.insert(0, workflow.basedir)
os.environ.update(
    PYTHONPATH=os.pathsep.join(filter(None, [workflow.basedir, os.getenv("PYTHONPATH")])),
    PATH=os.pathsep.join([os.path.dirname(sys.executable), os.getenv("PATH", os.defpath)]),
    SCRIPTS=os.path.join(workflow.basedir, "scripts"),
)

from specdec.data.sources import BUILTIN_TEMPLATES, load_texts, parse_source
from specdec.models.hub import resolve_model
from specdec.models.registry import ModelPair, get_pair, needs_synthetic_acceptance
from specdec.utils.errors import SpecdecError
from specdec.utils.files import check_writable
from specdec.utils.machine import check_threads
from specdec.utils.paths import PROJECT_ROOT
from specdec.utils.schema import find_mistake
from specdec.utils.yaml_reader import read_yaml


def stop(key, message):
    """End with one line that names the configuration file which decides on `key`."""
    overlays = len(workflow.overwrite_configfiles)
    files = workflow.configfiles[overlays:] + workflow.configfiles[:overlays]
    deciding = [file for file in files if key in (read_yaml(file) or {})]
    on_command_line = key in dict(workflow.config_settings.config)
    where = "--config" if on_command_line else os.path.relpath((deciding or files)[-1])
    sys.exit(f"error: {where}: {message}")


def check_files():
    """See that no file says two things, and that the study's folders can be written."""
    try:
        for file in workflow.configfiles:
            read_yaml(os.path.relpath(file))
        for folder in (".snakemake", "results", "figures"):
            check_writable(folder)
    except SpecdecError as error:
        sys.exit(f"error: {error}")


def check_schema():
    """Compare the configuration with its schema."""
    mistake = find_mistake(config, PROJECT_ROOT / "config/schemas/config.schema.yaml")
    if mistake:
        stop(mistake.path[0] if mistake.path else None, mistake.text)


def check_machine():
    """See that the timed jobs get the device and the threads that they ask for."""
    if any(option in sys.argv for option in ("--executor", "-e", "--profile")):
        return  # jobs may run elsewhere: a cluster's head need not have what its nodes have
    try:
        check_threads(config["threads"])
    except SpecdecError as error:
        stop("threads", error)
    if config["device"].startswith("cuda"):
        from specdec.models.loader import resolve_device  # late: it loads torch

        try:
            resolve_device(config["device"])
        except SpecdecError as error:
            stop("device", f"device: {error}")


def check_sources(domains):
    """See that each domain's prompts have a source that holds enough, where it is at hand."""
    for domain in domains:
        if domain not in config["sources"]:
            stop("domains", f"domains: '{domain}' has no entry in sources")
        try:
            source = parse_source(domain, config["sources"][domain])
            if source.hub:
                continue
            if source.path and not os.path.isfile(source.path):
                stop("sources", f"sources.{domain}.path: there is no file {source.path}")
            if not source.path and domain not in BUILTIN_TEMPLATES:
                known = ", ".join(BUILTIN_TEMPLATES)
                stop("sources", f"sources.{domain}: built-in prompts are for {known}")
            loaded = load_texts(source, warn=print)
        except SpecdecError as error:
            stop("sources", error)
        different = len({text.prompt for text in loaded.texts if text.field.strip()})
        if different < config["prompts_per_domain"]:
            stop(
                "prompts_per_domain",
                f"prompts_per_domain: {config['prompts_per_domain']} are asked for, and "
                f"{source.path or 'the built-in source'} has {different} different ones for {domain}",
            )


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


check_files()
check_schema()
check_machine()
REGISTRY = config["registry"]
if REGISTRY == "config/pairs.yaml" and not os.path.exists(REGISTRY):
    REGISTRY = str(PROJECT_ROOT / REGISTRY)
os.environ.update(REGISTRY=REGISTRY)
PAIRS = read_pairs()
check_sources({domain for pair in PAIRS.values() for domain in pair.domains})
check_acceptance()
check_models()

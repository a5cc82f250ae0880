"""What the rules take from the study: its files, and the settings that decide on each."""

import hashlib
import json
import re
from dataclasses import asdict

from specdec.utils.digest import code_digest, model_digest

# Prompts leave room for this many draft tokens, or for the study's largest K where that is more:
# another K up to it chooses no other prompts, so only its own cells run.
ROOM_FOR_DRAFTS = 16

#: A decode job's place under results/runs, and under its progress and its logs.
CELL = "{pair}/{domain}/T{temperature}_K{k}_{engine}"

RUNS = [
    f"results/runs/{name}/{domain}/T{temperature:.12g}_K{k:.0f}_{engine}.jsonl"
    for name, pair in PAIRS.items()
    for domain in pair.domains
    for temperature in config["temperatures"]
    for k in [0, *pair.draft_tokens]  # 0 is the baseline
    for engine in pair.engines
]
TABLES = [
    f"results/tables/{name}"
    for name in ("generations.csv", "cells.csv", "positions.csv", "rounds.csv.gz")
]
#: The heading in the report under which each figure stands.
FIGURE_CATEGORIES = {
    "speedup_heatmap": "Speedup",
    "latency_cdf": "Time",
    "time_breakdown": "Time",
    "acceptance_by_domain": "Acceptance",
    "acceptance_by_position": "Acceptance",
}
FIGURES = [f"figures/{name}.{format}" for name in FIGURE_CATEGORIES for format in ("png", "svg")]


wildcard_constraints:
    pair=r"[\w.-]+",
    domain=r"[\w.-]+",
    temperature=r"[\de.+-]+",
    k=r"\d+",
    engine="eager|compiled|auto",
    tokenizer=r"[\w.@-]+",


def tokenizer_of(entry):
    """The name of a pair's prompt file: its target, whose tokenizer counts, if it has one."""
    if entry.target.has_random_weights:
        return "bytes"
    name = re.sub(r"[^A-Za-z0-9._-]+", "--", entry.target.label)
    return f"{name}@{entry.target.revision}" if entry.target.revision else name


def pairs_of(wildcards):
    """The study's pairs that share a prompt file."""
    return [name for name, pair in PAIRS.items() if tokenizer_of(pair.entry) == wildcards.tokenizer]


def sides_of(wildcards):
    """What a prompt's length and the room for it depend on, as text."""
    entries = [PAIRS[name].entry for name in pairs_of(wildcards)]
    sides = [side for entry in entries for side in (entry.target, entry.draft)]
    return json.dumps([[side.label, side.revision, side.chat] for side in sides])


def prompt_settings(wildcards):
    """The part of the study that decides on the prompts, as JSON."""
    pairs = [PAIRS[name] for name in pairs_of(wildcards)]
    domains = {domain: None for pair in pairs for domain in pair.domains}
    settings = {name: config[name] for name in ("prompts_per_domain", "max_new_tokens", "seed")}
    settings["sources"] = {domain: config["sources"][domain] for domain in domains}
    settings["room_for_drafts"] = max(
        ROOM_FOR_DRAFTS, *(k for pair in pairs for k in pair.draft_tokens)
    )
    return json.dumps(settings)


def source_files(wildcards):
    """Digests of the files that prompts come from: local ones, and the built-in ones."""
    sources = json.loads(prompt_settings(wildcards))["sources"]
    builtin = PROJECT_ROOT / "specdec/data/builtin"
    files = [builtin / f"{domain}.json" for domain in sources if sources[domain] == "builtin"]
    given = [source for source in sources.values() if isinstance(source, dict)]
    files += [source["path"] for source in given if "path" in source]
    return [hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] for file in files]


def prompts_of(wildcards):
    return f"results/prompts/{tokenizer_of(PAIRS[wildcards.pair].entry)}.json"


def decode_settings(wildcards):
    """The part of the study that decides on a cell, as JSON."""
    names = ("max_new_tokens", "seed", "paired", "device", "threads")
    settings = {name: config[name] for name in names}
    settings["synthetic_acceptance"] = PAIRS[wildcards.pair].synthetic_acceptance
    return json.dumps(settings)


def pair_entry(wildcards):
    """What the registry says of a pair, but for what only speaks to people, as text."""
    entry = asdict(PAIRS[wildcards.pair].entry) | {"notes": "", "memory_gb": None}
    for side in ("draft", "target"):
        entry[side]["notes"] = ""
    return json.dumps(entry)


def pair_weights(wildcards):
    """Digests of a pair's models, where they are local and not of random weights."""
    entry = PAIRS[wildcards.pair].entry
    return [
        side.label if side.has_random_weights else model_digest(resolve_model(side.model))
        for side in (entry.draft, entry.target)
    ]


def progress_of(wildcards):
    """The side file that keeps a job's finished generations; another job's are never in it."""
    deciding = [decode_settings(wildcards), pair_entry(wildcards), *pair_weights(wildcards)]
    digest = hashlib.sha256("".join(deciding).encode()).hexdigest()[:8]
    return f"results/progress/{CELL.format(**wildcards)}.{digest}.jsonl"

"""The figures of a card that a prediction rests on: published ones, or those of this machine.

`config/cards.yaml` holds the published ones with their sources.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from specdec.planning.work import Work
from specdec.utils.errors import SpecdecError
from specdec.utils.paths import PROJECT_ROOT
from specdec.utils.yaml_reader import read_yaml

CARDS_PATH = PROJECT_ROOT / "config/cards.yaml"
PROPOSAL_OPERATIONS = 4  # of the host between two draft steps: choose, write, cut, view
PASS_OPERATIONS = 4  # of the host around a captured pass: tokens and length in, launch, logits out


@dataclass(frozen=True)
class Card:
    """What a processor does per second, and what it costs to ask it; in bytes and seconds."""

    name: str
    engine: str  # eager or compiled: what the costs below are of
    memory: float
    cache_bandwidth: float  # at which keys and values are read, where no pass was measured
    operation: float  # a launch: of a kernel in a graph, or of an operation from the host
    operations_overlap: bool  # the host launches while the device works; else one after the other
    round: float  # what is neither a pass nor a choice of tokens, a round
    proposal: float  # the same, a drafted token
    step: float  # the same of the baseline, a step
    logit: float  # to choose a token, a logit
    # Bytes of weights and of the cache a second, by the rows of the pass; or what gives them:
    rates: dict[int, float] = field(default_factory=dict)
    cache_rates: dict[int, float] = field(default_factory=dict)
    bandwidth: float = 0.0
    int4_bandwidth: float = 0.0
    peak: dict[torch.dtype, float] = field(default_factory=dict)

    def product_seconds(self, work: Work, rows: int) -> float:
        """Seconds of the matrix products of a pass over `rows` tokens."""
        if self.rates:
            return work.weight_bytes / self.rates[rows]
        wide = work.weight_bytes - work.int4_bytes
        reading = wide / self.bandwidth + work.int4_bytes / (self.int4_bandwidth or self.bandwidth)
        return max(reading, 2 * rows * work.products / self.peak[work.dtype])

    def cache_seconds(self, work: Work, rows: int, context: int) -> float:
        """Seconds of the attention of a pass over `rows` tokens behind `context` cached ones."""
        rate = self.cache_rates[rows] if self.cache_rates else self.cache_bandwidth
        return work.cache_bytes * (context + rows) / rate


def from_host(card: Card, name: str) -> Card:
    """The same card where the host drives the rounds: only the passes are captured."""
    figures = _published(name)
    between = (PROPOSAL_OPERATIONS + PASS_OPERATIONS) * figures["kernel_eager"]
    return replace(card, round=figures["round"]["eager"], proposal=between)


def published_card(name: str, engine: str) -> Card:
    """A card of `config/cards.yaml`.

    Raises:
        SpecdecError: where there is none of that name.
    """
    return _card(_published(name), engine)


def _published(name: str) -> dict[str, Any]:
    cards = read_yaml(CARDS_PATH)
    if name not in cards:
        close = difflib.get_close_matches(name, cards, n=1)
        guess = f"; did you mean '{close[0]}'?" if close else ""
        raise SpecdecError(f"--on: no card '{name}' is known{guess}; known: {', '.join(cards)}")
    return cards[name]


def _card(figures: dict[str, Any], engine: str) -> Card:
    bandwidth = figures["reached"] * figures["bandwidth"]
    half = figures["peak"]["half"]
    captured = engine == "compiled"
    return Card(
        name=figures["name"],
        engine=engine,
        memory=figures["memory"],
        cache_bandwidth=bandwidth,
        operation=figures["kernel_captured" if captured else "kernel_eager"],
        operations_overlap=not captured,
        round=figures["round"][engine],
        proposal=0.0 if captured else PROPOSAL_OPERATIONS * figures["kernel_eager"],
        step=figures["step"][engine],
        logit=4 * 4 / bandwidth,  # four passes over logits in float32
        bandwidth=bandwidth,
        int4_bandwidth=figures["int4_reached"] * figures["bandwidth"],
        peak={
            torch.float16: half,
            torch.bfloat16: half,
            torch.float32: figures["peak"]["float32"],
        },
    )

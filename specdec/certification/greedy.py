"""Greedy output: does a pair emit what its target emits alone, token for token?

Where it does not, the two tokens' logits say why. A pass over K + 1 rows goes through other matrix
kernels than a pass over one row and rounds differently, and so does a compiled pass; so two logits
that are nearly equal can change places. How far a logit moves that way is measured on the very
texts that were decoded, by the passes that decode. Were it further than rounding goes, that would
be a defect by itself, and excuse none.

An engine may promise more: its own baseline's output, bit for bit. Then that is examined too, and
no near tie excuses a difference.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from specdec.data.dataset import Prompt
from specdec.decoding.loaded_pair import LoadedPair
from specdec.engine.fast_model import ROUNDING
from specdec.profiling.metrics import first_difference
from specdec.study.near_ties import is_near_tie, replay
from specdec.utils.logging import get_logger

log = get_logger(__name__)

DRAFT_TOKENS = (1, 2, 4, 8)
NEW_TOKENS = 48
NEAR_TIE, DEFECT = "near tie at this dtype", "defect"
NOT_BITWISE = "differs from the compiled baseline: a defect"


@dataclass(frozen=True)
class Parting:
    """Where the output of a pair leaves the target's; everything behind it is unexamined.

    `tokens` and `logits` (of one row, after the same text) are the target's and then the pair's;
    None stands for an output that had ended.
    """

    prompt_id: str
    draft_tokens: int
    position: int
    tokens: tuple[int | None, int | None]
    texts: tuple[str, str]
    logits: tuple[float | None, float | None]
    gap: float | None


def check_greedy(
    pair: LoadedPair,
    prompts: list[Prompt],
    engine: str,
) -> dict:
    """The `greedy` part of a certificate.

    The target alone decodes eagerly, whatever `engine` the pair is asked to take: a mistake of an
    engine must not stand on both sides.
    """
    target = pair.target
    baseline = pair.decoder(0, "eager")
    decoders = {k: pair.decoder(k, engine) for k in DRAFT_TOKENS}
    engines: dict[int, set[str]] = {k: set() for k in DRAFT_TOKENS}
    own_baseline = pair.decoder(0, engine)
    longest = pair.longest(prompt.text for prompt in prompts) + NEW_TOKENS
    # With a draft first: there are two models to compile, side by side.
    for k, decoder in {**decoders, 0: own_baseline}.items():
        log.info("greedy output: preparing K = %d", k)
        decoder.prepare(longest=longest)
    promised = all(decoder.is_bitwise() for decoder in (own_baseline, *decoders.values()))
    broken: list[Parting] = []  # promises
    moved, largest = dict.fromkeys(DRAFT_TOKENS, 0.0), 0.0
    partings: list[Parting] = []
    for number, prompt in enumerate(prompts, 1):
        log.info("greedy output: prompt %d of %d", number, len(prompts))
        encoded = pair.encode(prompt.text)
        ids = encoded.prompt_ids
        alone = baseline.generate(ids, NEW_TOKENS).generated_ids
        one_row = replay(baseline, ids, alone)
        largest = max(largest, float(one_row.abs().max()))
        own = own_baseline.generate(ids, NEW_TOKENS).generated_ids if promised else None
        for k, decoder in decoders.items():
            block = replay(decoder, ids, alone)
            moved[k] = max(moved[k], float((block - one_row).abs().max()))
            result = decoder.generate(max_new_tokens=NEW_TOKENS, **encoded._asdict())
            engines[k].add(result.engine)
            together = result.generated_ids
            if together != alone:
                partings.append(_part(prompt.prompt_id, k, alone, together, one_row, target))
            if promised and together != own:
                logits = replay(baseline, ids, own)
                broken.append(_part(prompt.prompt_id, k, own, together, logits, target))
    verdicts = [_judge(parting, moved[parting.draft_tokens]) for parting in partings]
    apart = {parting.prompt_id for parting in partings}
    beyond = [k for k in DRAFT_TOKENS if moved[k] > ROUNDING * largest]
    return {
        "verdict": "defect" if DEFECT in verdicts or broken or beyond else "pass",
        # Whether every output is the compiled baseline's, bit for bit, as promised.
        "bitwise": promised and not broken,
        "prompts": len(prompts),
        "agreeing": len(prompts) - len(apart),
        "agreeing_by_draft_tokens": {
            str(k): len(prompts) - sum(parting.draft_tokens == k for parting in partings)
            for k in DRAFT_TOKENS
        },
        "engine_by_draft_tokens": {str(k): "; ".join(sorted(engines[k])) for k in DRAFT_TOKENS},
        "max_new_tokens": NEW_TOKENS,
        "largest_logit_difference": {str(k): moved[k] for k in DRAFT_TOKENS},
        # The K whose passes give other numbers than the target's, further apart than rounding goes.
        "beyond_rounding": beyond,
        "divergences": [
            asdict(parting) | {"verdict": verdict}
            for parting, verdict in zip(partings, verdicts, strict=True)
        ]
        + [asdict(parting) | {"verdict": NOT_BITWISE} for parting in broken],
    }


def _part(prompt_id, k, alone, together, one_row, target) -> Parting:
    """The first place where two outputs differ, one of which may have ended there."""
    place = first_difference(alone, together)
    tokens = tuple(ids[place] if place < len(ids) else None for ids in (alone, together))
    if None in tokens:
        logits, gap = (None, None), None
    else:
        logits = tuple(one_row[place, token].item() for token in tokens)
        gap = logits[0] - logits[1]
    texts = tuple("" if t is None else target.tokenizer.decode([t]) for t in tokens)
    return Parting(prompt_id, k, place, tokens, texts, logits, gap)


def _judge(parting: Parting, moved: float) -> str:
    told = parting.gap is not None and is_near_tie(parting.gap, moved)
    return NEAR_TIE if told else DEFECT

"""A pair beside its target alone on a text just generated, in plain words."""

from __future__ import annotations

from dataclasses import replace

from specdec.benchmark.arms import BenchPrompt, Request, Run, decoder_arm, measure
from specdec.decoding.decoder import Decoder
from specdec.decoding.loaded_pair import Encoded

RUNS = 3  # of each, in turns; the one of the median time counts


def side_by_side(
    alone: Decoder, together: Decoder, k: int, turns: list[tuple[Encoded, int]], request: Request
) -> str:
    """How many times as fast as its target alone a pair goes on from prompts, in one line.

    Args:
        turns: the prompts, each with the number of tokens to generate.
        request: what is asked of both; its budget gives way to that number.
    """
    runs: dict[int, list[Run]] = {0: [], k: []}
    for encoded, length in turns:
        asked = replace(request, max_new_tokens=length)
        arms = [decoder_arm(0, alone, asked), decoder_arm(k, together, asked)]
        measured = measure(arms, [BenchPrompt("the prompt", encoded)], RUNS)
        for arm in arms:
            runs[arm.K] += measured[arm.name]
    steps = sum(run.amounts["steps"] for run in runs[0])
    if steps == 0:
        return "too short to compare with the target alone: one token"
    baseline, pair = (steps / sum(run.amounts["decode_s"] for run in runs[arm]) for arm in (0, k))
    slower = ": here the draft costs more than it saves" if pair < baseline else ""
    same = request.temperature == 0 and all(
        own.ids == other.ids for own, other in zip(runs[0], runs[k], strict=True)
    )
    return (
        f"{pair / baseline:.2f} times as fast as the target alone{slower} ({pair:.1f} against "
        f"{baseline:.1f} tokens a second after the first, {RUNS} runs each in turns"
        f"{'; the same tokens' if same else ''})"
    )

"""The phases' clocks against passes that are timed apart: do c and v mean what they say?

    python benchmarks/timers.py --pair micro --engine eager

S follows from the parts of a round by construction, for h is what the other parts leave: the tables
alone would not notice a clock that runs wrong. Here the same passes are timed a second time, each
by itself, behind as many tokens as the generations have read on average, in turns with the
generations. Prints the milliseconds of both, and c and v made of either.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from specdec import load_pair
from specdec.decoding.autoregressive import AutoregressiveDecoder
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.planning.measure import interleave, random_tokens, reader, time_pass
from specdec.utils.errors import cli
from specdec.utils.table import markdown

TOKENS, PROMPT = 64, 96  # of a generation; of its prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", required=True)
    parser.add_argument("--registry")
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--engine", default="eager", choices=["eager", "compiled"])
    parser.add_argument("--seconds", type=float, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    draft, target = load_pair(arguments.pair, arguments.registry)
    K, engine = arguments.k, arguments.engine
    decoders = {
        "baseline": AutoregressiveDecoder(target, engine=engine),
        "rounds": SpeculativeDecoder(draft, target, K, engine=engine),
    }
    for decoder in decoders.values():
        decoder.prepare()
    results: dict[str, list] = {name: [] for name in decoders}

    def generate(name: str) -> float:
        prompt = random_tokens(target, PROMPT)
        result = decoders[name].generate(prompt, TOKENS, seed=0, eos_token_id=None)
        results[name].append(result)
        return result.total_time

    context = PROMPT + TOKENS // 2
    measures = {name: lambda name=name: generate(name) for name in decoders}
    for side, wrapper, rows in (
        ("draft", draft, 1),
        ("step", target, 1),
        ("verify", target, K + 1),
    ):
        session = reader(wrapper, context, [rows], engine)
        measures[side] = lambda w=wrapper, s=session, n=rows: time_pass(w, s, n)
    apart = interleave(measures, arguments.seconds, at_least=5)
    rounds = sum(result.num_speculation_rounds for result in results["rounds"])
    in_place = {
        "draft": _total(results["rounds"], "draft") / (rounds * K),
        "step": _total(results["baseline"], "verify") / (len(results["baseline"]) * (TOKENS - 1)),
        "verify": _total(results["rounds"], "verify") / rounds,
    }
    alone = {name: 1e3 * float(np.median(apart[name])) for name in in_place}
    rows = [["", "in place", "apart", "in place ÷ apart"]]
    for name in in_place:
        rows.append(_row(f"{name}, ms a pass", in_place[name], alone[name]))
    for name, of in (("c", "draft"), ("v", "verify")):
        rows.append(_row(name, in_place[of] / in_place["step"], alone[of] / alone["step"]))
    print(f"{arguments.pair}, K = {K}, {engine}, {context} tokens read\n\n{markdown(rows)}")


def _total(results: list, phase: str) -> float:
    return sum(result.phase_times_ms[phase] for result in results)


def _row(name: str, in_place: float, apart: float) -> list[str]:
    return [name, f"{in_place:.3f}", f"{apart:.3f}", f"{in_place / apart:.2f}"]


if __name__ == "__main__":
    cli(main)

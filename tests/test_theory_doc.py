"""docs/speculative_decoding_theory.md: each number recomputed, its claims enumerated exactly.

How the document vouches for its numbers is said in `theory_document`.
"""

import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from specdec.analysis import theory
from specdec.method.rule import reject
from tests.theory_document import Document, visible_numbers
from tests.theory_formulas import (
    break_even,
    emitted,
    mean_emitted,
    residual,
    speedup,
    tau_within,
    with_third,
)

DOC = Path(__file__).parents[1] / "docs" / "speculative_decoding_theory.md"


@pytest.fixture(scope="module")
def text():
    return DOC.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def names(text):
    return Document(text).names


def test_every_number_of_the_document_is_right(text):
    problems = Document(text).problems
    assert not problems, "\n".join(problems)


def test_changing_any_number_of_the_document_is_noticed(text):
    """Each in turn, by one in its last digit: else a wrong number could stand there."""
    inputs = Document(text).inputs
    numbers = visible_numbers(text)
    for start, number in numbers:
        at = start + len(number) - 1
        digit = 8 if text[at] == "9" else int(text[at]) + 1
        changed = Document(f"{text[:at]}{digit}{text[at + 1 :]}")
        noticed = changed.problems or changed.inputs != inputs
        assert noticed, f"unnoticed: …{text[at - 60 : at]}{digit}"
    assert len(numbers) > 300


@pytest.mark.parametrize(
    "wrong, complaint",
    [
        ("It is 3.37. <!-- check: tau(0.8, 4) = 3.37 -->", "it is 3.3616"),
        ("It is 3.37. <!-- check: tau(0.8, 4) = 3.36 -->", "doesn't stand"),
        ("It is 3.36, not 2.8. <!-- check: tau(0.8, 4) = 3.36 -->", "nothing vouches for 2.8"),
        ("| a | S |\n|---|---|\n| 0.5 | 1.60 |\n<!-- table: a | tau(a, 1) -->", "it is 1.5000"),
        ("| after | x |\n|---|---|\n| x | 0.90 |\n<!-- distributions: p -->", "adds up to 0.9"),
        ("It is 3. <!-- given: K = 3 --> Or 4. <!-- given: K = 4 -->", "another number above"),
    ],
)
def test_a_wrong_number_is_named(wrong, complaint):
    assert any(complaint in problem for problem in Document(wrong).problems)


def rounds_from(p, q, k):
    """{last word: {words emitted: probability}} of a round with k drafts to go, all cases."""
    if k == 0:
        return {last: {(x,): w for x, w in row.items()} for last, row in p.items()}
    after = rounds_from(p, q, k - 1)
    out = {}
    for last in p:
        keep = {x: q[last][x] * min(Fraction(1), p[last][x] / q[last][x]) for x in p}
        refused = 1 - sum(keep.values())
        out[last] = {(x,): refused * w for x, w in residual(p[last], q[last]).items()}
        for x in p:
            for rest, weight in after[x].items():
                words = (x, *rest)
                out[last][words] = out[last].get(words, 0) + keep[x] * weight
    return out


def texts_from(rounds, n):
    """{last word: {first n words of round after round: probability}}."""
    lengths = [{last: {(): Fraction(1)} for last in rounds}]
    while len(lengths) <= n:
        m = len(lengths)
        lengths.append({last: {} for last in rounds})
        for last, out in lengths[m].items():
            for words, weight in rounds[last].items():
                for rest, w in lengths[max(0, m - len(words))][words[-1]].items():
                    key = words[:m] + rest
                    out[key] = out.get(key, 0) + weight * w
    return lengths[n]


def test_rounds_emit_the_target_s_joint_distribution_exactly(names):
    """Every text of six words, so of two rounds or more: no sampling, no tolerance."""
    p, q = names["p"], names["q"]
    rounds = rounds_from(p, q, 4)
    for last, texts in texts_from(rounds, 6).items():
        assert len(texts) == 5**6
        for words, probability in texts.items():
            pairs = zip((last, *words), words, strict=False)
            assert probability == math.prod(p[before][word] for before, word in pairs)
    mean = sum(len(words) * weight for words, weight in rounds["the"].items())
    assert mean == mean_emitted(p, q, "the", 4)


@pytest.mark.parametrize("third", ["0.83", "0.45"])
def test_the_engine_s_rule_emits_what_the_walkthrough_says(names, third):
    p, q, drafted, noise = names["p"], names["q"], names["column"]["drafted"], names["r"]
    uniforms = with_third(names["column"]["u"], Fraction(third))
    vocabulary, before = list(p), ["the", *drafted]
    count, token = reject(
        tensor([p[word].values() for word in before]),
        tensor([q[word].values() for word in before[:-1]]),
        torch.tensor([vocabulary.index(word) for word in drafted]),
        tensor([uniforms])[0],
        tensor([[noise] * 5])[0],
        torch.ones(4, dtype=torch.bool),
    )
    words = [*drafted[: int(count)], vocabulary[int(token)]]
    assert " ".join(words) == emitted(p, q, drafted, uniforms, noise)


def tensor(rows):
    return torch.tensor([[float(x) for x in row] for row in rows], dtype=torch.float64)


@pytest.mark.parametrize("a", ["0", "0.5", "0.8", "1"])
@pytest.mark.parametrize("k", [1, 4, 8])
def test_the_study_predicts_with_the_document_s_formulas(a, k):
    costs = c, v, h, h0 = 0.1, 1.2, 0.1, 0.02
    predicted = theory.speedup(theory.tokens_per_round(float(a), k), k, *costs)
    assert predicted == pytest.approx(float(speedup(Fraction(a), k, *costs)), rel=1e-12)
    within = theory.tokens_per_round_within(float(a), k, [47])
    assert within == pytest.approx(tau_within(Fraction(a), k, 47), rel=1e-12)
    assert theory.break_even_alpha(k, c, v, h) == pytest.approx(break_even(k, c, v, h), abs=1e-9)

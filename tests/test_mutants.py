"""Tests of the tests: engines broken on purpose, each of which the suite must catch.

The lossy ones change the output's distribution, and the joint chi-square must reject them. The
wasteful ones keep it and lose the speed, and draft = target or the identities must fail.

No mutant: a draft token drawn from q but scored as if it were certain (a one-hot q). Given the
token, rejection sampling from a point mass is exact, so that is wasteful, not lossy.
"""

from __future__ import annotations

import pytest
import torch

from specdec.decoding.drafters import model
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.method import noise, sampling
from specdec.method import rule as rejection
from specdec.method.sampling import Greedy, Matching, Rejection
from tests.checks import assert_accepts_everything, assert_identities
from tests.distribution import SIGNIFICANCE, joint_fit
from tests.tiny import table_pair

PROMPT = [0, 1, 2]


def accepts_all_after_the_first(monkeypatch):
    def accepted_count(p, q, tokens, uniforms, valid):
        kept = uniforms[0] * q[0, tokens[0]] <= p[0, tokens[0]]
        return (kept & valid).sum()

    monkeypatch.setattr(rejection, "accepted_count", accepted_count)


def no_residual_in_late_positions(monkeypatch):
    right = rejection.next_distribution
    monkeypatch.setattr(
        rejection,
        "next_distribution",
        lambda p, q, count: torch.where(count > 0, p[int(count)], right(p, q, count)),
    )


def soft_scores_for_a_greedy_draft(monkeypatch):
    def propose(self, logits, position):
        return logits.argmax(-1), self.warp(logits)

    monkeypatch.setattr(Rejection, "propose", propose)


def residual_reuses_the_drafts_uniform(monkeypatch):
    monkeypatch.setattr(sampling, "RESIDUAL", noise.DRAFT)


def target_unwarped(monkeypatch):
    right = Rejection.verify

    def verify(self, logits, *rest):
        return right(self, logits * self.temperature, *rest)

    monkeypatch.setattr(Rejection, "verify", verify)


def scores_permuted_against_their_tokens(monkeypatch):
    right = Rejection.propose

    def propose(self, logits, position):
        token, q = right(self, logits, position)
        return token, q.roll(1)

    monkeypatch.setattr(Rejection, "propose", propose)


def a_draft_without_q_verified_by_rejection(monkeypatch):
    """What "no q" taken for "nothing was proposed" comes to: u·0 ≤ p keeps everything."""
    right = Rejection.verify

    def verify(self, logits, tokens, q, position, valid):
        return right(self, logits, tokens, torch.zeros_like(logits[:-1]), position, valid)

    monkeypatch.setattr(Rejection, "propose", Matching.propose)
    monkeypatch.setattr(Rejection, "verify", verify)


# Which table of the suite shows the mutant best: (seed of the table, mutant).
LOSSY = [
    (0, accepts_all_after_the_first),
    (5, no_residual_in_late_positions),
    (0, soft_scores_for_a_greedy_draft),
    (0, residual_reuses_the_drafts_uniform),
    (0, target_unwarped),
    (0, scores_permuted_against_their_tokens),
    (0, a_draft_without_q_verified_by_rejection),
]


@pytest.mark.parametrize(
    ("seed", "mutant"), LOSSY, ids=lambda value: getattr(value, "__name__", "")
)
def test_the_distribution_test_rejects_a_lossy_engine(seed, mutant, monkeypatch):
    mutant(monkeypatch)
    decoder = SpeculativeDecoder(*table_pair(seed=seed), 2)
    fit = joint_fit(decoder, PROMPT, 4, temperature=0.7)
    assert fit.p_value < SIGNIFICANCE


def test_a_drafter_without_q_is_verified_by_matching(monkeypatch):
    """The rule is chosen from what a drafter says of itself, not from a q that is missing."""
    monkeypatch.setattr(model.DraftModel, "gives_q", False)
    decoder = SpeculativeDecoder(*table_pair(), 2)
    result = decoder.generate(PROMPT, 4, temperature=0.7, seed=0, eos_token_id=None)
    assert result.verified_by == "matching"
    fit = joint_fit(decoder, PROMPT, 4, temperature=0.7)
    assert fit.p_value > SIGNIFICANCE, fit


def never_drafts(monkeypatch):
    right = model.ModelDrafting.propose

    def propose(self, k):
        proposal = right(self, k)
        return proposal._replace(tokens=torch.zeros_like(proposal.tokens))

    monkeypatch.setattr(model.ModelDrafting, "propose", propose)


def bonus_dropped(monkeypatch):
    right = Greedy.verify

    def verify(self, logits, tokens, *rest):
        count, token = right(self, logits, tokens, *rest)
        return (count - 1, tokens[-1]) if count == len(tokens) else (count, token)

    monkeypatch.setattr(Greedy, "verify", verify)


def hole_in_the_drafts_cache(monkeypatch):
    """After full acceptance the draft goes on without having read its own last token."""
    right = model.ModelDrafting.settle

    def settle(self, kept, token, read):
        right(self, kept, token, read)
        if self.session.length == len(self.prompt) + self._run.position + kept - 1:
            self.session.read(torch.tensor([0]), keep=1)  # anything but the token that was missed

    monkeypatch.setattr(model.ModelDrafting, "settle", settle)


WASTEFUL = [never_drafts, bonus_dropped, hole_in_the_drafts_cache]


@pytest.mark.parametrize("mutant", WASTEFUL, ids=lambda m: m.__name__)
def test_draft_equals_target_or_the_identities_reject_a_wasteful_engine(mutant, monkeypatch):
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        assert_accepts_everything(k=3)
        assert_identities(k=3)

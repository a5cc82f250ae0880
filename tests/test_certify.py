"""The certificate of a pair: right engines pass, and each engine broken on purpose does not."""

from __future__ import annotations

import functools
import json
import sys

import pytest
import torch
import yaml

from specdec import __main__ as command
from specdec.certification import certificate, greedy, sampling
from specdec.certification.greedy import DEFECT, NEAR_TIE, Parting, check_greedy
from specdec.certification.prompts import load_prompts
from specdec.certification.rule import check_rule
from specdec.certification.sampling import Context, check_sampling
from specdec.data.dataset import Prompt, PromptDataset
from specdec.data.prompts import Limit, digest
from specdec.decoding import drafters, rejection
from specdec.decoding.sampling import Greedy
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.models.registry import ModelPair, ModelSide
from specdec.utils.errors import SpecdecError
from tests.test_mutants import LOSSY
from tests.tiny import TableModel, make_model, make_table, perturbed, wrap
from tests.toy_tokenizers import byte_level

PROMPTS = [
    Prompt(f"code_{i:03d}", "code", f"def add_{i}(a, b):\n    return a + {i} * b\n", 20)
    for i in range(3)
]


class Table(TableModel):
    """A table model that also reads several texts at once, where it keeps no cache."""

    def forward(self, input_ids, past_key_values=None, use_cache=True, logits_to_keep=0):
        if past_key_values is not None:
            return super().forward(input_ids, past_key_values, use_cache)
        one_by_one = [super(Table, self).forward(row[None]) for row in input_ids]
        one_by_one[0].logits = torch.cat([output.logits for output in one_by_one])
        return one_by_one[0]


def table_decoder(seed=0, **settings) -> SpeculativeDecoder:
    target, draft = (Table(make_table(4, seed + i)) for i in range(2))
    return SpeculativeDecoder(wrap(draft), wrap(target), sampling.DRAFT_TOKENS, **settings)


def certified(decoder, generations=sampling.GENERATIONS):
    return check_sampling(decoder, [Context([0, 1, 2]), Context([3])], generations)


def test_sampling_of_a_right_engine_passes_and_states_its_power():
    part = certified(table_decoder())
    assert part["verdict"] == "pass" and part["p_value"] > 0.01
    assert part["draws"] == 2 * 4 * 128 and len(part["tests"]) == 6
    assert part["detectable_total_variation"] < 0.25
    assert all(test["draws"] == 512 and test["degrees"] == 31 for test in part["tests"])
    assert part["tokens"] > part["draft_tokens"] + 1
    assert 0.3 < part["draft_total_variation"] < 0.7


@pytest.mark.parametrize(("seed", "mutant"), LOSSY, ids=lambda value: getattr(value, "__name__", ""))
def test_sampling_of_a_lossy_engine_is_a_defect(seed, mutant, monkeypatch):
    mutant(monkeypatch)
    assert certified(table_decoder(seed))["verdict"] == "defect"


def test_sampling_is_repeatable():
    assert certified(table_decoder(), 48) == certified(table_decoder(), 48)

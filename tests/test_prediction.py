"""`specdec plan --on`: what bytes, products and launches say of a pair on a card nobody has."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
import yaml

from specdec import __main__ as command
from specdec.models.registry import ModelSide, get_pair
from specdec.planning.cards import CARDS_PATH, Card, published_card
from specdec.planning.costs import Request, make_request
from specdec.planning.prediction import (
    compare_here,
    find_acceptance,
    pass_seconds,
    predict_costs,
    predict_on,
    round_rest,
)
from specdec.planning.prediction_page import format_comparison, format_prediction
from specdec.planning.work import Work, count_work, launches, rounds
from specdec.utils.errors import SpecdecError
from tests.test_plan import SIZES

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CARDS = list(yaml.safe_load(CARDS_PATH.read_text()))
# 10 bytes of weights at 5 a second; 4 multiplications a row at 16 operations a second.
WORK = Work(
    weight_bytes=10.0,
    int4_bytes=0.0,
    products=4.0,
    head=1.0,
    cache_bytes=0.5,
    layers=1,
    operations=30,
    vocabulary=100,
    dtype=torch.float16,
)
CARD = Card(
    name="made up",
    engine="eager",
    memory=100.0,
    cache_bandwidth=5.0,
    operation=0.1,
    operations_overlap=False,
    round=1.0,
    proposal=0.25,
    step=0.5,
    logit=0.01,
    bandwidth=5.0,
    peak={torch.float16: 16.0},
)


def side(layers: int, **sizes) -> ModelSide:
    dtype = sizes.pop("dtype", "float32")
    shape = SIZES | {"num_hidden_layers": layers} | sizes
    return ModelSide("llama", dtype, weights="random", shape=shape)


class TestWork:
    # Attention: q and o of 32 × 32, k and v of 32 × 16; behind it three of 32 × 64.
    LAYER = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64
    HEAD = 32 * 256

    def test_a_pass_reads_its_products_and_not_the_table_of_embeddings(self):
        work = count_work(side(3), CPU)
        assert work.products == 3 * self.LAYER + self.HEAD
        assert work.weight_bytes == 4 * work.products
        assert work.cache_bytes == 2 * 3 * 2 * 8 * 4  # keys and values, layers, heads, size, bytes

    def test_weights_of_4_bits_are_few_bytes_and_the_head_stays_wide(self):
        work = count_work(side(3, dtype="int4"), CUDA)
        assert work.int4_bytes == pytest.approx(3 * self.LAYER * 0.516, rel=0.01)
        assert work.weight_bytes == pytest.approx(work.int4_bytes + 2 * self.HEAD)
        assert work.dtype == torch.bfloat16

    def test_a_compiled_draft_of_4_bits_reads_its_head_in_8_on_a_cpu(self):
        draft = side(3, dtype="int4")
        for engine, device, expected in (
            ("compiled", CPU, True),
            ("eager", CPU, False),
            ("compiled", CUDA, False),
        ):
            request = Request("tiny", draft, draft, [1], 8, device, 0, engine=engine)
            assert rounds(draft, request) is expected
        work = count_work(draft, CPU, rounds=True)
        assert work.weight_bytes == pytest.approx(work.int4_bytes + self.HEAD)
        assert work.head == self.HEAD

    def test_a_4_bit_self_has_its_targets_dtype_where_it_is_not_quantised(self):
        draft = side(3, dtype="int4")
        alone, own = count_work(draft, CPU), count_work(draft, CPU, unquantised="bfloat16")
        assert alone.weight_bytes - own.weight_bytes == 2 * self.HEAD
        assert (alone.cache_bytes, alone.dtype) == (2 * own.cache_bytes, torch.float32)
        assert own.dtype == torch.bfloat16

    def test_operations_grow_by_the_layer(self):
        few, more, many = (count_work(side(n), CPU).operations for n in (1, 2, 4))
        assert more > few > 10
        assert many - more == 2 * (more - few)

    def test_a_compiler_leaves_the_same_few_kernels_of_each_layer(self):
        assert launches(WORK, "eager") == 30
        assert launches(WORK, "compiled") < 30


class TestPass:
    def test_it_takes_its_bytes_its_cache_and_its_launches(self):
        # 10 / 5 of weights, (7 + 1) · 0.5 / 5 of cache, 30 · 0.1 of launches.
        assert pass_seconds(WORK, CARD, rows=1, context=7) == pytest.approx(2 + 0.8 + 3)

    def test_many_rows_take_their_products(self):
        # 2 · 40 · 4 / 16 = 20 > 10 / 5
        assert CARD.product_seconds(WORK, 40) == pytest.approx(20)
        assert CARD.product_seconds(WORK, 4) == pytest.approx(2)

    def test_a_host_that_launches_while_the_device_works_costs_only_what_it_is_behind(self):
        overlapping = replace(CARD, operations_overlap=True)
        assert pass_seconds(WORK, overlapping, 1, 7) == pytest.approx(3)
        quick = replace(overlapping, operation=0.01)
        assert pass_seconds(WORK, quick, 1, 7) == pytest.approx(2.8)

    def test_4_bits_are_read_at_their_own_speed(self):
        mixed, card = replace(WORK, int4_bytes=4.0), replace(CARD, int4_bandwidth=2.0)
        assert card.product_seconds(mixed, 1) == pytest.approx(6 / 5 + 4 / 2)

    def test_measured_rates_count_where_there_are_any(self):
        measured = replace(CARD, rates={1: 5.0, 3: 4.0})
        assert measured.product_seconds(WORK, 3) == pytest.approx(2.5)

    def test_so_do_those_of_the_cache(self):
        measured = replace(CARD, cache_rates={1: 8.0, 3: 4.0})
        assert measured.cache_seconds(WORK, 3, 7) == pytest.approx(10 * 0.5 / 4)
        assert CARD.cache_seconds(WORK, 3, 7) == pytest.approx(10 * 0.5 / 5)

    def test_the_rest_of_a_round_is_its_choices_and_what_the_host_does(self):
        # Three draft tokens and four of the target are chosen among 100 logits each.
        assert round_rest(WORK, CARD, 3) == pytest.approx(1 + 3 * 0.25 + 7 * 100 * 0.01)


class TestCards:
    @pytest.mark.parametrize("engine", ["eager", "compiled"])
    @pytest.mark.parametrize("name", CARDS)
    def test_each_has_its_figures_and_says_where_they_are_from(self, name, engine):
        card = published_card(name, engine)
        assert card.memory > 1e10 and 1e11 < card.bandwidth < card.peak[torch.float16]
        assert card.int4_bandwidth < card.bandwidth and card.operation > 0
        assert yaml.safe_load(CARDS_PATH.read_text())[name]["source"]

    def test_an_unknown_card_is_one_line_with_the_nearest(self):
        with pytest.raises(SpecdecError, match="no card 'h10' is known; did you mean 'h100'"):
            published_card("h10", "eager")


class TestPrediction:
    def request(self, pair: str, engine: str = "compiled") -> Request:
        return make_request(get_pair(pair), [1, 4], 256, CUDA, 0, engine=engine)

    def test_8b_in_bfloat16_takes_about_what_an_h100_was_seen_to_take(self):
        # 5.1 to 5.2 ms captured, by its bytes 4.5: config/cards.yaml.
        plan = predict_on("h100", self.request("llama32_llama3"), None)
        assert plan["target_step_ms"] == pytest.approx(5.2, rel=0.1)
        assert plan["both_fit"]

    def test_a_host_that_launches_makes_c_a_matter_of_layers(self):
        # 22 layers against 32; by their bytes a seventh.
        c = predict_costs(*self.arguments("tinyllama_llama3", "eager")).c.value
        assert c == pytest.approx(22 / 32, abs=0.03)
        assert predict_costs(*self.arguments("tinyllama_llama3", "compiled")).c.value < 0.25

    def arguments(self, pair: str, engine: str):
        card = published_card("h100", engine)
        return self.request(pair, engine), card, card

    def test_of_a_draft_of_another_vocabulary_the_host_drives_captured_passes(self):
        whole = predict_costs(*self.arguments("tinyllama_llama3", "compiled"))
        driven = predict_on("h100", self.request("tinyllama_llama3"), None)["rows"][1]
        assert driven["K"] == 4
        assert driven["c"]["value"] == pytest.approx(whole.c.value)
        assert driven["v"]["value"] == pytest.approx(whole.v[4].value)
        assert driven["h"]["value"] > 5 * whole.h[4].value

    def test_a_pair_that_does_not_fit_says_so(self):
        plan = predict_on("l4", self.request("phi3_llama3"), None)
        assert not plan["both_fit"]
        assert "they do not fit" in format_prediction(plan)

    def test_every_line_says_that_it_is_predicted(self):
        plan = predict_on("a100", self.request("gpt2_dev"), "0.7")
        page = format_prediction(plan).splitlines()
        assert all(line.startswith("predicted") for line in page)
        assert page[-1] == (
            f"predicted  S at α=0.700: K=1 {plan['rows'][0]['S']['0.7']:.2f}, "
            f"K=4 {plan['rows'][1]['S']['0.7']:.2f}"
        )

    def test_the_command_measures_nothing(self, monkeypatch, capsys):
        monkeypatch.setattr("specdec.planning.costs.load_random_weights", pytest.fail)
        monkeypatch.setattr(
            "sys.argv", ["specdec", "plan", "--pair", "llama3_self", "--on", "h200", "--k", "2"]
        )
        command.main()
        document = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert document["predicted"] and document["rows"][0]["K"] == 2


class TestAcceptance:
    def test_it_is_a_number_or_of_a_studys_tables(self, tmp_path):
        cells = {"pair": ["a", "a", "a"], "acceptance": ["measured", "measured", "synthetic 0.9"]}
        cells |= {"alpha_iid": [0.5, 0.8, 0.9], "n": [10, 20, 5]}
        pd.DataFrame(cells).to_csv(tmp_path / "cells.csv", index=False)
        assert find_acceptance("0.25", "a") == 0.25
        assert find_acceptance(str(tmp_path), "a") == pytest.approx(0.7)
        with pytest.raises(SpecdecError, match="no measured cell of the pair 'b'"):
            find_acceptance(str(tmp_path), "b")

    @pytest.mark.parametrize("given", ["1.5", "nan", "results/none"])
    def test_anything_else_is_one_line(self, given):
        with pytest.raises(SpecdecError, match="--acceptance: "):
            find_acceptance(given, "a")


class TestHere:
    def test_what_this_machine_predicts_stands_beside_what_was_measured(self):
        request = Request("tiny", side(1), side(2), [1, 3], 8, CPU, seconds=0)
        measured = predict_costs(request, CARD32, CARD32)
        compared = compare_here(request, measured, None)
        assert [(row["K"], row["quantity"]) for row in compared["rows"]] == [
            (k, name) for k in (1, 3) for name in ("c", "v", "h", "S")
        ]
        assert all(row["predicted"] > 0 for row in compared["rows"])
        page = format_comparison(compared)
        assert "S at α=0.8" in page and page.count("%") == 8


CARD32 = replace(CARD, peak={torch.float32: 16.0})

"""GenerationResult and BenchmarkConfig: properties, JSON and the hash of a request."""

import json
import os
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest

from specdec.profiling.metrics import BenchmarkConfig, GenerationResult
from specdec.utils.errors import SpecdecError

SPECULATIVE_FIELDS = [
    "acceptance_rate",
    "tokens_per_step",
    "num_speculation_rounds",
    "draft_time_total_ms",
    "verify_time_total_ms",
    "sampling_time_total_ms",
    "accepted_per_round",
    "proposed_per_round",
]
OTHER_OPTIONAL_FIELDS = [
    "phase_times_ms",
    "phase_peak_memory_mb",
    "finish_reason",
    "engine",
    "engine_reason",
]


def autoregressive(**changes) -> GenerationResult:
    values = dict(
        generated_ids=[1, 2, 3, 4, 5],
        per_token_latencies=[0.08, 0.09, 0.08, 0.10, 0.09],
        total_time=0.44,
        peak_memory_mb=1823.0,
        time_to_first_token=0.08,
    )
    return GenerationResult(**(values | changes))


def speculative(**changes) -> GenerationResult:
    """Nine tokens: the first alone, then rounds of 3, 1 and 4."""
    values = dict(
        generated_ids=list(range(9)),
        per_token_latencies=[0.5, 0.03, 0, 0, 0.02, 0.04, 0, 0, 0],
        total_time=0.59,
        acceptance_rate=0.75,
        tokens_per_step=8 / 3,
        num_speculation_rounds=3,
        draft_time_total_ms=30.0,
        verify_time_total_ms=50.0,
        sampling_time_total_ms=5.0,
        accepted_per_round=[2, 0, 3],
        proposed_per_round=[4, 4, 4],
        time_to_first_token=0.5,
    )
    return autoregressive(**(values | changes))


class TestFields:
    @pytest.mark.parametrize("name", SPECULATIVE_FIELDS + OTHER_OPTIONAL_FIELDS)
    def test_what_a_decoder_does_not_fill_is_none(self, name):
        assert getattr(autoregressive(), name) is None

    @pytest.mark.parametrize(
        "name",
        [
            "generated_ids",
            "per_token_latencies",
            "total_time",
            "peak_memory_mb",
            "time_to_first_token",
        ],
    )
    def test_what_every_decoder_measures_is_required(self, name):
        values = autoregressive().to_dict()
        del values[name]
        with pytest.raises(TypeError, match=name):
            GenerationResult(**values)

    def test_no_two_results_share_a_list(self):
        first, second = autoregressive(), autoregressive()
        first.generated_ids.append(6)
        assert second.num_tokens == 5


class TestProperties:
    def test_num_tokens_counts_what_was_generated(self):
        assert autoregressive().num_tokens == 5

    def test_tokens_per_second_is_over_the_whole_time(self):
        assert autoregressive().tokens_per_second == pytest.approx(5 / 0.44)

    def test_no_time_gives_no_rate(self):
        assert autoregressive(total_time=0.0).tokens_per_second == 0

    def test_nothing_generated_gives_no_rate(self):
        assert autoregressive(generated_ids=[]).tokens_per_second == 0

    @pytest.mark.parametrize("percent", [50, 95, 99])
    def test_latency_percentiles_are_those_of_numpy(self, percent):
        result = autoregressive()
        expected = np.percentile(result.per_token_latencies, percent)
        assert getattr(result, f"latency_p{percent}") == pytest.approx(expected)

    @pytest.mark.parametrize("percent", [50, 95, 99])
    def test_percentiles_of_one_latency_are_that_latency(self, percent):
        assert getattr(autoregressive(per_token_latencies=[0.3]), f"latency_p{percent}") == 0.3

    @pytest.mark.parametrize("percent", [50, 95, 99])
    def test_percentiles_of_nothing_are_zero(self, percent):
        assert getattr(autoregressive(per_token_latencies=[]), f"latency_p{percent}") == 0

    def test_percentiles_are_plain_floats(self):
        assert type(autoregressive().latency_p95) is float

    def test_percentiles_rise(self):
        result = speculative()
        assert result.latency_p50 <= result.latency_p95 <= result.latency_p99

    def test_bursts_are_not_smoothed(self):
        # Five of nine tokens came for free, so the median wait is none.
        assert speculative().latency_p50 == 0

    def test_an_acceptance_rate_makes_a_result_speculative(self):
        assert not autoregressive().is_speculative
        assert speculative().is_speculative

    def test_an_acceptance_rate_of_zero_is_speculative_too(self):
        assert autoregressive(acceptance_rate=0.0).is_speculative

    def test_decode_time_leaves_the_first_token_out(self):
        assert speculative().decode_time == pytest.approx(0.09)


class TestRounds:
    def test_rounds_are_told_from_the_bursts(self):
        assert speculative().round_tokens == [3, 1, 4]
        assert speculative().round_times == [0.03, 0.02, 0.04]

    def test_rounds_add_up_to_the_tokens_and_the_time_after_the_first(self):
        result = speculative()
        assert sum(result.round_tokens) == result.num_tokens - 1
        assert sum(result.round_times) == pytest.approx(result.decode_time)

    def test_every_step_of_the_baseline_is_a_hand_over(self):
        assert autoregressive().round_tokens == [1, 1, 1, 1]
        assert len(autoregressive().round_times) == 4

    @pytest.mark.parametrize("latencies", [[], [0.5]])
    def test_without_a_second_token_there_is_no_round(self, latencies):
        result = autoregressive(per_token_latencies=latencies)
        assert result.round_tokens == result.round_times == []

    def test_a_last_round_of_one_token_counts(self):
        result = speculative(per_token_latencies=[0.5, 0.1, 0, 0.2])
        assert result.round_tokens == [2, 1]


class TestJson:
    @pytest.mark.parametrize("make", [autoregressive, speculative])
    def test_a_result_survives_the_round_trip(self, make):
        result = make()
        assert GenerationResult.from_dict(json.loads(result.to_json_line())) == result

    def test_a_line_is_one_line_and_ends_in_a_newline(self):
        line = speculative().to_json_line()
        assert line.endswith("}\n")
        assert line.count("\n") == 1

    def test_a_dictionary_holds_exactly_the_fields(self):
        assert set(autoregressive().to_dict()) == {f.name for f in fields(GenerationResult)}

    def test_a_dictionary_shares_nothing_with_the_result(self):
        result = autoregressive()
        result.to_dict()["generated_ids"].append(6)
        assert result.num_tokens == 5

    def test_unknown_keys_are_ignored(self):
        data = autoregressive().to_dict() | {"config_hash": "x", "pair": "micro"}
        assert GenerationResult.from_dict(data) == autoregressive()

    def test_keys_of_later_versions_may_be_missing(self):
        data = autoregressive().to_dict()
        for name in SPECULATIVE_FIELDS + OTHER_OPTIONAL_FIELDS:
            del data[name]
        assert GenerationResult.from_dict(data) == autoregressive()

    def test_a_missing_required_key_is_named(self):
        data = autoregressive().to_dict()
        del data["total_time"]
        with pytest.raises(SpecdecError, match="total_time"):
            GenerationResult.from_dict(data)

    def test_phase_times_survive(self):
        result = speculative(phase_times_ms={"draft": 1.5, "verify": 2.5})
        restored = GenerationResult.from_dict(json.loads(result.to_json_line()))
        assert restored.phase_times_ms == {"draft": 1.5, "verify": 2.5}

    def test_lines_appended_to_a_file_are_read_back(self, tmp_path):
        path = tmp_path / "run.jsonl"
        with path.open("a") as file:
            for make in (autoregressive, speculative):
                file.write(make().to_json_line())
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [GenerationResult.from_dict(line).is_speculative for line in lines] == [False, True]


class TestSummary:
    def test_the_baselines_summary(self):
        assert autoregressive(total_time=0.44).summary() == (
            "AR  | 5 tok | 11.4 tok/s | p50=90ms p95=100ms | mem=1823MB"
        )

    def test_a_speculative_summary_says_what_a_reader_waits_between_hand_overs(self):
        """Most latencies of a burst are 0, and p50=0.0ms is nothing that anyone waits."""
        assert speculative().summary() == (
            "SD  | 9 tok | 15.3 tok/s | p50=30ms p95=40ms | mem=1823MB | accept=0.75 rounds=3"
        )
        assert speculative().latency_p50 == 0.0

    def test_times_below_ten_milliseconds_keep_a_decimal(self):
        assert "p50=1.6ms" in autoregressive(per_token_latencies=[0.0016]).summary()

    def test_a_result_without_a_token_has_a_summary(self):
        empty = autoregressive(generated_ids=[], per_token_latencies=[], total_time=0.0)
        assert empty.summary().startswith("AR  | 0 tok | 0.0 tok/s")


REQUEST = BenchmarkConfig(
    model_pair_name="gpt2_dev",
    K=4,
    temperature=0.0,
    max_new_tokens=200,
    prompt_domain="code",
    seed=42,
)
REQUEST_HASH = "ad73554a29a0"
FULL_REQUEST = replace(
    REQUEST,
    temperature=0.8,
    prompt_id="code_007",
    prompt_digest="0123456789abcdef",
    prompt_source="builtin",
    draft_model="gpt2",
    target_model="gpt2-xl",
    draft_dtype="float16",
    target_dtype="float16",
    tokenizer="gpt2-xl",
    top_p=0.95,
    device_type="cuda",
)
FULL_REQUEST_HASH = "bef97b79b8e4"

OTHER_VALUES = dict(
    model_pair_name="micro",
    K=2,
    temperature=0.5,
    max_new_tokens=100,
    prompt_domain="conversation",
    seed=1,
    prompt_id="code_000",
    prompt_digest="f" * 16,
    prompt_source="builtin",
    draft_model="gpt2",
    target_model="gpt2-xl",
    draft_dtype="int4",
    target_dtype="float16",
    draft_revision="main",
    target_revision="main",
    tokenizer="gpt2",
    top_k=50,
    top_p=0.9,
    engine="eager",
    vocabulary="same",
    coupled=True,
    draft_chat="none",
    target_chat="none",
    draft_prompt="own",
    device_type="cpu",
    synthetic_acceptance=0.8,
)


class TestConfig:
    @pytest.mark.parametrize("k, label", [(0, "AR"), (1, "SD-K1"), (4, "SD-K4"), (16, "SD-K16")])
    def test_the_label_names_the_decoder(self, k, label):
        assert replace(REQUEST, K=k).decoder_label == label

    def test_a_hash_is_12_hex_digits(self):
        assert len(REQUEST.config_hash()) == 12
        int(REQUEST.config_hash(), 16)

    def test_hashes_are_those_of_earlier_versions(self):
        # A record on disk is found again by its hash: these literals must never change.
        assert REQUEST.config_hash() == REQUEST_HASH
        assert FULL_REQUEST.config_hash() == FULL_REQUEST_HASH

    def test_another_process_gives_the_same_hash(self):
        code = (
            "from specdec.profiling.metrics import BenchmarkConfig;"
            "print(BenchmarkConfig('gpt2_dev', 4, 0.0, 200, 'code', 42).config_hash())"
        )
        for hash_seed in ("1", "2"):
            environment = os.environ | {"PYTHONHASHSEED": hash_seed}
            command = [sys.executable, "-c", code]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            assert done.stdout.strip() == REQUEST_HASH, done.stderr

    def test_every_field_has_another_value_to_try(self):
        assert set(OTHER_VALUES) == {field.name for field in fields(BenchmarkConfig)}

    @pytest.mark.parametrize("name", OTHER_VALUES)
    def test_every_field_changes_the_hash(self, name):
        assert replace(REQUEST, **{name: OTHER_VALUES[name]}).config_hash() != REQUEST_HASH

    def test_all_these_hashes_differ(self):
        hashes = {replace(REQUEST, **{k: v}).config_hash() for k, v in OTHER_VALUES.items()}
        assert len(hashes) == len(OTHER_VALUES)

    @pytest.mark.parametrize(
        "integer, floating",
        [
            ({"temperature": 0}, {"temperature": 0.0}),
            ({"temperature": 1}, {"temperature": 1.0}),
            ({"top_p": 1}, {"top_p": 1.0}),
            ({"synthetic_acceptance": 1}, {"synthetic_acceptance": 1.0}),
        ],
    )
    def test_an_integer_asks_for_the_same_as_its_float(self, integer, floating):
        assert (
            replace(REQUEST, **integer).config_hash() == replace(REQUEST, **floating).config_hash()
        )

    @pytest.mark.parametrize("name", ["K", "seed", "temperature"])
    def test_the_six_first_fields_count_even_where_they_are_zero(self, name):
        assert (
            replace(REQUEST, **{name: 0}).config_hash()
            != replace(REQUEST, **{name: 7}).config_hash()
        )

    def test_a_field_spelled_out_at_its_default_changes_nothing(self):
        assert (
            replace(REQUEST, top_k=0, engine="auto", prompt_id=None).config_hash() == REQUEST_HASH
        )

    def test_asking_does_not_change_the_request(self):
        before = REQUEST.to_dict()
        REQUEST.config_hash()
        assert REQUEST.to_dict() == before

"""The tables, made of records of runs whose truth is known."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from specdec.analysis.tables import FILES, load_table, load_tables, make_tables, write_tables
from specdec.profiling.records import request_of
from specdec.utils.errors import SpecdecError
from specdec.utils.paths import PROJECT_ROOT
from tests.simulated_runs import Truth, simulate_job, simulate_study

NOISY = Truth(noise=0.05, drift=0.3, alpha_spread=0.08)


def cell_of(run_files: list[Path]) -> pd.Series:
    (cell,) = (row for _, row in make_tables(run_files).cells.iterrows())
    return cell


def edit_records(path: Path, change) -> Path:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        change(record)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def drop_records(path: Path, lost) -> Path:
    """Without the records for which `lost` holds."""
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not lost(json.loads(line))))
    return path


def ask_for(path: Path, **changes) -> Path:
    """Records of another request, hash and all."""

    def change(record):
        record.update(changes)
        record["config_hash"] = request_of(record).config_hash()

    return edit_records(path, change)


def cut_to_first_token(record: dict) -> None:
    """What a record says if the first token was the end token."""
    record["generated_ids"] = record["generated_ids"][:1]
    record["per_token_latencies"] = record["per_token_latencies"][:1]
    record["total_time"] = record["time_to_first_token"]
    record["phase_times_ms"] = {"prefill": record["phase_times_ms"]["prefill"]}
    if record["K"]:
        record["accepted_per_round"] = record["proposed_per_round"] = []


# The truth is found again


@pytest.mark.parametrize("K", [1, 2, 4, 8])
def test_the_parts_of_a_round_are_what_they_were(tmp_path, K):
    truth = Truth(alpha=0.75, c=0.12, v=1.4, h=0.07, h0=0.03, drift=0.3)
    cell = cell_of([simulate_job(tmp_path, truth, K, prompts=50)])
    # The two arms share a prompt's speed but not its rounds, so the ratios are not exact.
    assert cell[["c", "v", "h"]].tolist() == pytest.approx([0.12, 1.4, 0.07], rel=0.05)
    assert cell.h0 == pytest.approx(0.03)
    assert cell.alpha_iid == pytest.approx(0.75, abs=0.04)
    steady = cell_of([simulate_job(tmp_path / "steady", replace(truth, drift=0), K)])
    assert steady[["c", "v", "h", "h0"]].tolist() == pytest.approx([0.12, 1.4, 0.07, 0.03])


def test_the_speedup_is_the_ratio_of_totals_over_prompts(tmp_path):
    tables = make_tables([simulate_job(tmp_path, NOISY, 4)])
    rows = tables.generations
    rate = {
        k: rows[rows.K == k].decode_s.sum() / (rows[rows.K == k].num_tokens - 1).sum()
        for k in (0, 4)
    }
    (cell,) = tables.cells.itertuples()
    assert pytest.approx(rate[0] / rate[4]) == cell.S
    whole = {
        k: rows[rows.K == k].total_s.sum() / rows[rows.K == k].num_tokens.sum() for k in (0, 4)
    }
    assert pytest.approx(whole[0] / whole[4]) == cell.S_end_to_end
    assert cell.S_end_to_end < cell.S  # the prefill speeds up nothing
    assert cell.tokens_per_s / cell.baseline_tokens_per_s == pytest.approx(cell.S)
    assert cell.S_low < cell.S < cell.S_high
    assert cell.alpha_low < cell.alpha < cell.alpha_high


def test_the_parts_put_together_give_the_speedup_again(tmp_path):
    paths = simulate_study(tmp_path, [NOISY], ["code", "chat"], [1, 2, 4, 8], [0.0, 0.8])
    cells = make_tables(paths).cells
    assert len(cells) == 16
    np.testing.assert_allclose(cells.S_parts, cells.S, rtol=1e-12)
    # Theory doesn't know that prompts differ.
    assert (abs(cells.S_theory / cells.S - 1) < 0.1).all()


@pytest.mark.slow
def test_the_interval_of_the_speedup_covers_the_true_one(tmp_path):
    truth = replace(NOISY, drift=0.1)
    true = cell_of([simulate_job(tmp_path, truth, 4, prompts=1000, seed=10**6)]).S
    cells = [
        cell_of([simulate_job(tmp_path / str(seed), truth, 4, prompts=10, seed=seed)])
        for seed in range(60)
    ]
    covered = np.mean([cell.S_low <= true <= cell.S_high for cell in cells])
    assert covered >= 0.86  # 95 % less three standard errors


def test_a_machine_that_drifts_moves_a_paired_speedup_little(tmp_path):
    calm, drifting = Truth(), Truth(drift=0.5)
    S = cell_of([simulate_job(tmp_path / "calm", calm, 2)]).S
    paired = cell_of([simulate_job(tmp_path / "paired", drifting, 2)])
    apart = cell_of([simulate_job(tmp_path / "apart", drifting, k, paired=False) for k in (0, 2)])
    assert paired.S == pytest.approx(S, rel=0.15)
    assert paired.S_high - paired.S_low < 0.5 * (apart.S_high - apart.S_low)


def test_alpha_counts_what_was_accepted_of_what_was_proposed(tmp_path):
    tables = make_tables([simulate_job(tmp_path, NOISY, 4)])
    rows = tables.generations[tables.generations.K == 4]
    assert tables.cells.alpha[0] == pytest.approx(rows.accepted.sum() / rows.proposed.sum())
    assert tables.cells.tau[0] == pytest.approx((rows.num_tokens - 1).sum() / rows.rounds.sum())
    np.testing.assert_allclose(rows.alpha, rows.accepted / rows.proposed)


def test_the_parts_of_a_generation_add_up_to_its_decoding_time(tmp_path):
    rows = make_tables([simulate_job(tmp_path, NOISY, 4)]).generations
    parts = rows.draft_ms + rows.verify_ms + rows.sample_ms + rows.other_ms
    np.testing.assert_allclose(parts, rows.decode_s * 1e3)
    np.testing.assert_allclose(rows.total_s, rows.decode_s + rows.ttft_s)


def test_rounds_hold_every_hand_over_after_the_first(tmp_path):
    tables = make_tables([simulate_job(tmp_path, NOISY, 4)])
    sums = tables.rounds.groupby(["K", "prompt_id"])[["tokens", "seconds"]].sum()
    rows = tables.generations.set_index(["K", "prompt_id"]).sort_index()
    assert (sums.tokens == rows.num_tokens - 1).all()
    np.testing.assert_allclose(sums.seconds, rows.decode_s)
    ours = tables.rounds[tables.rounds.K == 4].seconds * 1e3
    expected = np.percentile(ours, [50, 95, 99], method="inverted_cdf")
    np.testing.assert_allclose(
        tables.cells.loc[0, ["p50_ms", "p95_ms", "p99_ms"]].tolist(), expected
    )


def test_tau_is_what_was_emitted_however_the_last_round_was_cut(tmp_path):
    """At α = 1 a budget of 48 gives 2.94 and 4.70 tokens a round, for K = 2 and 4: not 3 and 5."""
    for K, tau in ((2, 47 / 16), (4, 47 / 10)):
        cell = cell_of([simulate_job(tmp_path, Truth(alpha=1), K)])
        assert cell.tau == pytest.approx(tau) and cell.S_theory == pytest.approx(cell.S)


def test_what_an_end_token_cuts_off_was_not_rejected(tmp_path):
    """The decoder ends accepted and proposed where the text ends: here in the last draft token."""
    cut = [(3, 3), (2, 2)]  # of 4 + 3 tokens the last is an accepted end token
    assert positions_of(tmp_path, cut, tokens=1 + 4 + 2) == ([2, 2, 1], [2, 2, 1])


def test_percentiles_of_few_rounds_are_left_out(tmp_path):
    """The 99th of 15 rounds would be the largest of them."""
    few = cell_of([simulate_job(tmp_path / "few", NOISY, 4, prompts=2, tokens=8)])
    assert few.p50_ms > 0 and np.isnan([few.p95_ms, few.p99_ms]).all()
    some = cell_of([simulate_job(tmp_path / "some", NOISY, 4, prompts=4, tokens=48)])
    assert some.p95_ms >= some.p50_ms and np.isnan(some.p99_ms)
    many = cell_of([simulate_job(tmp_path / "many", NOISY, 4, prompts=20)])
    assert many.p50_ms_low <= many.p50_ms <= many.p50_ms_high


def test_every_estimate_has_an_interval_around_it(tmp_path):
    cell = cell_of([simulate_job(tmp_path, NOISY, 4)])
    for name in ("S", "S_end_to_end", "alpha", "tau", "c", "v", "h", "h0", "tokens_per_s"):
        assert cell[f"{name}_low"] <= cell[name] <= cell[f"{name}_high"], name


def test_the_best_of_several_k_has_an_interval_that_knows_it_was_chosen(tmp_path):
    paths = simulate_study(tmp_path, [replace(NOISY, alpha=0.9)], ["code"], [1, 2, 4], [0.0])
    cells = make_tables(paths).cells
    (best,) = cells[cells.best].itertuples()
    assert cells.S.max() == best.S > 1
    assert best.S_best_low < best.S_low and best.S_high < best.S_best_high
    assert cells[~cells.best][["S_best_low", "S_best_high"]].isna().all(axis=None)


def test_no_k_is_best_where_there_is_one_or_none_pays(tmp_path):
    one = make_tables([simulate_job(tmp_path / "one", Truth(alpha=0.95), 4)]).cells
    assert one.S[0] > 1 and not one.best.any()
    slow = simulate_study(tmp_path / "slow", [Truth(c=1.5)], ["code"], [1, 2], [0.0])
    assert not make_tables(slow).cells.best.any()


# Positions


def positions_of(tmp_path, rounds, tokens, K=3):
    """positions.csv of one generation with these (proposed, accepted) rounds."""

    def change(record):
        if record["K"]:
            record["proposed_per_round"] = [proposed for proposed, _ in rounds]
            record["accepted_per_round"] = [accepted for _, accepted in rounds]
            record["generated_ids"] = list(range(tokens))
            record["per_token_latencies"] = [0.01] * tokens

    path = edit_records(simulate_job(tmp_path, Truth(), K, prompts=1), change)
    table = make_tables([path]).positions
    trials = table.n_proposed_given_previous_accepted
    return trials.tolist(), (table.alpha_i.fillna(0) * trials).tolist()


def test_a_position_is_tried_where_all_before_it_were_accepted(tmp_path):
    rounds = [(3, 0), (3, 1), (3, 2), (3, 3)]
    assert positions_of(tmp_path, rounds, tokens=1 + 10) == ([4, 3, 2], [3, 2, 1])


def test_what_was_never_proposed_was_never_tried(tmp_path):
    assert positions_of(tmp_path, [(3, 3), (1, 1)], tokens=1 + 6) == ([2, 1, 1], [2, 1, 1])


def test_a_round_that_was_cut_inside_its_accepted_tokens_rejected_nothing(tmp_path):
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    assert positions_of(whole, [(3, 2)], tokens=1 + 3) == ([1, 1, 1], [1, 1, 0])
    assert positions_of(cut, [(3, 2)], tokens=1 + 2) == ([1, 1, 0], [1, 1, 0])


def test_alpha_i_of_constant_acceptance_is_constant(tmp_path):
    table = make_tables([simulate_job(tmp_path, Truth(alpha=0.7), 4, prompts=100)]).positions
    assert table.position.tolist() == [1, 2, 3, 4]
    assert ((table.low <= 0.7) & (0.7 <= table.high)).sum() >= 3
    np.testing.assert_allclose(table.alpha_i, 0.7, atol=0.05)


# Cells at the edges


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("K", [1, 4])
def test_rounds_that_all_reject_or_all_accept_are_cells_like_others(tmp_path, alpha, K):
    cell = cell_of([simulate_job(tmp_path, Truth(alpha=alpha), K)])
    assert cell.alpha == cell.alpha_iid == alpha
    # What never happened in ten prompts may happen in the eleventh.
    assert cell.alpha in (cell.alpha_low, cell.alpha_high) and cell.alpha_low < cell.alpha_high
    assert cell.S > 0 and cell.S_parts == pytest.approx(cell.S)
    if alpha == 0:
        assert cell.tau == 1


def test_one_prompt_gives_a_speedup_but_no_interval(tmp_path):
    cell = cell_of([simulate_job(tmp_path, NOISY, 4, prompts=1)])
    assert cell.n == 1 and cell.S > 0
    assert np.isnan([cell.S_low, cell.S_high, cell.alpha_low, cell.alpha_high]).all()


def test_generations_of_one_token_have_no_rounds_and_no_speedup(tmp_path):
    path = edit_records(simulate_job(tmp_path, NOISY, 4), cut_to_first_token)
    tables = make_tables([path])
    cell = tables.cells.iloc[0]
    assert np.isnan([cell.S, cell.alpha, cell.tau, cell.c, cell.p50_ms]).all()
    assert cell.S_end_to_end == pytest.approx(1)
    assert len(tables.rounds) == 0
    assert tables.positions.alpha_i.isna().all()


def test_an_end_token_at_once_on_some_prompts_leaves_the_others_their_cell(tmp_path):
    def change(record):
        if record["prompt_id"] in ("code_000", "code_003"):
            cut_to_first_token(record)

    path = simulate_job(tmp_path, Truth(), 4)
    whole, cut = cell_of([path]), cell_of([edit_records(path, change)])
    assert cut.S_low < cut.S < cut.S_high
    assert cut.v == pytest.approx(whole.v)


def test_untimed_phases_leave_the_speedup_and_empty_its_parts(tmp_path):
    path = simulate_job(tmp_path, NOISY, 4)
    timed = cell_of([path])
    bare = cell_of([edit_records(path, lambda record: record.update(phase_times_ms=None))])
    assert bare.S == timed.S and bare.tau == timed.tau
    assert np.isnan([bare.c, bare.v, bare.h, bare.h0, bare.S_parts]).all()


# Paired, unpaired, real and forced


def test_a_paired_run_is_compared_with_its_own_baseline(tmp_path):
    fast_elsewhere = simulate_job(tmp_path / "0", Truth(step_ms=1), 0)
    own = simulate_job(tmp_path / "4", Truth(), 4)
    cell = cell_of([fast_elsewhere, own])
    assert cell.paired and cell.S == pytest.approx(cell_of([own]).S)


def test_an_unpaired_run_is_compared_with_the_baselines_job_and_says_so(tmp_path):
    def end_early(record):  # S is of times per token, however many there were
        if record["prompt_id"] == "code_002":
            cut_to_first_token(record)

    paths = [simulate_job(tmp_path, Truth(), k, paired=False) for k in (0, 2)]
    edit_records(paths[1], end_early)
    tables = make_tables(paths)
    cell, rows = tables.cells.iloc[0], tables.generations
    totals = rows.assign(steps=rows.num_tokens - 1).groupby("K")[["decode_s", "steps"]].sum()
    rate = totals.decode_s / totals.steps
    assert not cell.paired
    assert cell.S == pytest.approx(rate[0] / rate[2])
    assert np.isnan(cell_of(paths[1:]).S)


def test_unpaired_only_prompts_with_both_arms_count(tmp_path):
    """Prompts without a baseline were counted, and S mixed two sets of prompts: 1.276 for 1.389."""
    noisy = replace(NOISY, drift=1.0)
    paths = [simulate_job(tmp_path, noisy, k, paired=False, seed=k) for k in (0, 2)]
    rows = make_tables(paths).generations.set_index(["K", "prompt_id"]).sort_index()
    kept = [f"code_{i:03d}" for i in range(4)]
    rate = {k: rows.loc[k].loc[kept].decode_s.sum() for k in (0, 2)}
    drop_records(paths[0], lambda record: record["prompt_id"] not in kept)
    edit_records(paths[0], lambda record: record.update(job_prompts=4))
    edit_records(paths[1], lambda record: record.update(job_prompts=4))
    with pytest.raises(SpecdecError, match="10 of 4 generations"):
        make_tables(paths)
    for path in paths:
        edit_records(path, lambda record: record.pop("job_prompts"))
    cell = cell_of(paths)
    assert cell.n == 4 and cell.S == pytest.approx(rate[0] / rate[2])
    accepted = rows.loc[2].loc[kept]
    assert cell.alpha == pytest.approx(accepted.accepted.sum() / accepted.proposed.sum())


def test_forced_acceptance_is_a_cell_of_its_own(tmp_path):
    forced = Truth(synthetic_acceptance=0.8)
    paths = [simulate_job(tmp_path / "a", Truth(), 4), simulate_job(tmp_path / "b", forced, 4)]
    tables = make_tables(paths)
    assert tables.cells.acceptance.tolist() == ["measured", "synthetic 0.8"]
    for table in (tables.generations, tables.rounds, tables.positions):
        assert set(table.acceptance) == {"measured", "synthetic 0.8"}
    assert np.isnan(tables.cells.identical[1])  # forced tokens need not be the target's


def engines(**changes) -> list[Truth]:
    """The same pair by both engines, of which the compiled one is twice as fast."""
    eager = Truth(engine="eager", engine_requested="eager", **changes)
    return [eager, replace(eager, engine="compiled", engine_requested="compiled", step_ms=5)]


@pytest.mark.parametrize("paired", [True, False])
def test_two_engines_never_share_a_cell_or_a_baseline(tmp_path, paired):
    paths = [simulate_job(tmp_path, e, k, paired=paired) for e in engines() for k in (0, 4)]
    tables = make_tables(paths)
    assert tables.cells.engine.tolist() == ["compiled", "eager"] == [*tables.cells.baseline_engine]
    assert tables.cells.n.tolist() == [10, 10]
    for cell, truth in zip(tables.cells.itertuples(), engines()[::-1], strict=True):
        assert cell.baseline_tokens_per_s == pytest.approx(1e3 / (truth.step_ms * 1.02))
    for table in tables:
        assert set(table.engine) == set(table.engine_requested) == {"compiled", "eager"}


def test_a_baseline_of_one_engine_is_not_matched_to_another(tmp_path):
    eager, compiled = engines()
    jobs = [(eager, 0), (compiled, 4)]
    cell = cell_of([simulate_job(tmp_path, truth, k, paired=False) for truth, k in jobs])
    assert np.isnan(cell.S) and cell.baseline_engine == ""


def test_what_auto_took_is_not_in_one_cell_with_what_was_asked_for(tmp_path):
    eager = engines()[0]
    asked = [eager, replace(eager, engine_requested="auto")]
    cells = make_tables([simulate_job(tmp_path, truth, 4) for truth in asked]).cells
    assert cells.engine.tolist() == ["eager", "eager"] and cells.n.tolist() == [10, 10]
    assert cells.engine_requested.tolist() == ["auto", "eager"]


def test_a_draft_that_cannot_be_compiled_is_compared_with_the_fast_baseline_and_says_so(tmp_path):
    def change(record):
        fell_back = record["K"] > 0
        reason = "its draft proposes text" if fell_back else None
        record.update(engine="eager" if fell_back else "compiled", engine_reason=reason)

    tables = make_tables([edit_records(simulate_job(tmp_path, Truth(), 4), change)])
    cell = tables.cells.iloc[0]
    assert cell.S > 0 and (cell.engine, cell.baseline_engine) == ("eager", "compiled")
    assert set(tables.generations.engine_reason.dropna()) == {"its draft proposes text"}


def test_a_generation_measured_twice_is_refused(tmp_path):
    paths = [simulate_job(tmp_path / x, Truth(device=x), 4) for x in ("one", "other")]
    with pytest.raises(SpecdecError, match="code_000 was measured twice") as error:
        make_tables(paths)
    assert str(paths[0]) in str(error.value) and str(paths[1]) in str(error.value)


def test_greedy_output_is_compared_with_the_baselines_token_by_token(tmp_path):
    def change(record):
        if record["K"] and record["prompt_id"] == "code_002":
            record["generated_ids"][7] += 1

    tables = make_tables([edit_records(simulate_job(tmp_path, Truth(), 4), change)])
    assert tables.cells.identical[0] == pytest.approx(0.9)
    ours = tables.generations[tables.generations.K == 4]
    assert ours.prompt_id[~ours.matches_baseline].tolist() == ["code_002"]
    assert tables.generations.matches_baseline[tables.generations.K == 0].isna().all()


def test_sampled_output_is_compared_only_where_it_is_coupled(tmp_path):
    path = simulate_job(tmp_path, Truth(), 4, temperature=0.8)
    assert np.isnan(cell_of([path]).identical)
    assert cell_of([ask_for(path, coupled=True)]).identical == 1


def test_exact_match_promises_the_same_tokens_at_every_temperature(tmp_path):
    path = simulate_job(tmp_path, Truth(), 4, temperature=0.8)
    edit_records(path, lambda record: record.update(drafter="ExactMatchDraft"))
    assert cell_of([path]).identical == 1
    said = edit_records(path, lambda record: record.update(drafter=None, verified_by="matching"))
    cell = cell_of([said])
    assert (cell.identical, cell.verified_by, cell.differing) == (1, "matching", 0)


def test_an_output_that_parts_at_a_recorded_near_tie_differs_without_fault(tmp_path):
    def change(record):
        if record["K"] and record["prompt_id"] in ("code_002", "code_005"):
            record["generated_ids"][7] += 1
            record["near_ties"] = [7] if record["prompt_id"] == "code_002" else [3]

    tables = make_tables([edit_records(simulate_job(tmp_path, Truth(), 4), change)])
    cell = tables.cells.iloc[0]
    assert (cell.identical, cell.differing, cell.verified_by) == (0.8, 1, "greedy")
    rows = tables.generations
    assert rows.prompt_id[rows.differs.fillna(False)].tolist() == ["code_005"]


# Files


def test_the_bytes_depend_on_the_records_alone(tmp_path):
    paths = simulate_study(tmp_path / "runs", [NOISY], ["code", "chat"], [2, 4], [0.0])
    write_tables(paths, tmp_path / "one")
    write_tables(paths[::-1], tmp_path / "other")
    for name in FILES.values():
        one, other = ((tmp_path / x / name).read_bytes() for x in ("one", "other"))
        assert one == other
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == sorted(FILES.values())


def test_tables_are_read_back_as_they_were(tmp_path):
    domains = ["NA", "null"]
    paths = simulate_study(tmp_path / "runs", [NOISY], domains, [1, 4], [0.0, 0.8])
    write_tables(paths, tmp_path)
    for written, read in zip(make_tables(paths), load_tables(tmp_path), strict=True):
        assert list(written.columns) == list(read.columns) and len(written) == len(read)
        for name in ("domain", "pair", "acceptance"):
            assert read[name].tolist() == written[name].tolist()
        numbers = written.select_dtypes("number").columns.drop("threads", errors="ignore")
        np.testing.assert_allclose(read[numbers], written[numbers].astype(float), rtol=1e-9)
    assert load_table(tmp_path, "generations").matches_baseline.dtype == "boolean"


def test_a_study_of_the_baseline_alone_has_tables_without_cells(tmp_path):
    write_tables([simulate_job(tmp_path / "runs", NOISY, 0)], tmp_path)
    tables = load_tables(tmp_path)
    assert len(tables.generations) == 10 and len(tables.cells) == len(tables.positions) == 0


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(SpecdecError, match="cells.csv: no such table; run"):
        load_table(tmp_path, "cells")
    (tmp_path / "cells.csv").write_bytes(b"\x00\xff")
    with pytest.raises(SpecdecError, match="cells.csv: not a table"):
        load_table(tmp_path, "cells")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(SpecdecError, match="empty.jsonl: there are no records in it; delete"):
        make_tables([tmp_path / "empty.jsonl"])
    path = edit_records(simulate_job(tmp_path, Truth(), 4), lambda record: record.pop("domain"))
    with pytest.raises(SpecdecError, match=f"{path.name}: a record without 'domain'"):
        make_tables([path])


def test_every_column_is_explained(tmp_path):
    document = (PROJECT_ROOT / "docs" / "tables.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\.csv.*?\n(.*?)(?=^## |\Z)", document, re.M | re.S))
    tables = make_tables([simulate_job(tmp_path, NOISY, 4)])
    for name, table in tables._asdict().items():
        explained = set(re.findall(r"`(\w+)`", sections[name]))
        assert set(table.columns) <= explained, name

"""Records that are not whole, or not of one study, never become a table."""

import json

import pytest

from specdec.analysis.tables import make_tables
from specdec.utils.errors import SpecdecError
from tests.simulated_runs import Truth, simulate_job
from tests.test_tables import ask_for, drop_records, edit_records


def lines_of(path):
    return path.read_text().splitlines(keepends=True)


def test_a_file_that_lost_its_last_line_is_refused(tmp_path):
    """It gave tables of the prompts that were left, with a narrower interval."""
    path = simulate_job(tmp_path, Truth(), 4, prompts=3)
    path.write_text("".join(lines_of(path)[:-1]))
    with pytest.raises(SpecdecError) as refused:
        make_tables([path])
    message = str(refused.value)
    assert message.startswith(f"{path}: 5 of 6 generations are there")
    assert "lacks K = 4 of code_002; delete the file and run the study again" in message


def test_a_file_that_lost_whole_prompts_is_refused(tmp_path):
    path = simulate_job(tmp_path, Truth(), 4, prompts=3)
    path.write_text("".join(lines_of(path)[:-2]))
    with pytest.raises(SpecdecError, match="4 of 6 generations .* lacks whole prompts"):
        make_tables([path])


def test_a_cell_without_its_baseline_says_which_cell_lacks_what(tmp_path):
    """It ended in numpy's "need at least one array to concatenate"."""
    path = drop_records(simulate_job(tmp_path, Truth(), 4), lambda record: record["K"] == 0)
    with pytest.raises(SpecdecError, match="10 of 20 .* micro, code, T = 0, K = 4 lacks K = 0 of"):
        make_tables([path])


def test_an_empty_file_among_others_is_refused(tmp_path):
    whole = simulate_job(tmp_path, Truth(), 4)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(SpecdecError, match="empty.jsonl: there are no records"):
        make_tables([whole, tmp_path / "empty.jsonl"])


@pytest.mark.parametrize(
    "field, value", [("seed", 7), ("max_new_tokens", 9), ("K", 2), ("temperature", 1.0)]
)
def test_an_edited_request_is_not_that_of_its_hash(tmp_path, field, value):
    path = simulate_job(tmp_path, Truth(), 4)
    edit_records(path, lambda record: record.update({field: value}))
    with pytest.raises(SpecdecError, match="isn't the one of its hash"):
        make_tables([path])


@pytest.mark.parametrize("field, value", [("seed", 7), ("max_new_tokens", 9)])
def test_records_of_another_study_are_refused(tmp_path, field, value):
    ours, theirs = (simulate_job(tmp_path, Truth(pair=x), 4) for x in ("micro", "other"))
    ask_for(theirs, **{field: value})
    with pytest.raises(SpecdecError, match=f"{field} {value}, but .* records of two studies"):
        make_tables([ours, theirs])


@pytest.mark.parametrize(
    "field, value",
    [("target_dtype", "bfloat16"), ("draft_model", "another"), ("prompt_source", "elsewhere")],
)
def test_records_of_one_pair_have_its_models_and_prompts(tmp_path, field, value):
    paths = [simulate_job(tmp_path, Truth(), k) for k in (2, 4)]
    ask_for(paths[1], **{field: value})
    with pytest.raises(SpecdecError, match=f"{field} {value}"):
        make_tables(paths)


def test_one_prompt_id_is_one_text(tmp_path):
    paths = [simulate_job(tmp_path, Truth(), k) for k in (2, 4)]
    ask_for(paths[1], prompt_digest="f" * 16)
    with pytest.raises(SpecdecError, match="prompt_digest"):
        make_tables(paths)


@pytest.mark.parametrize(
    "place, says",
    [
        ("micro/code/T0.0_K2_auto.jsonl", "job_K 2, its records 4"),
        ("micro/code/T0.8_K4_auto.jsonl", "temperature 0.8, its records 0.0"),
        ("micro/code/T0_K4_eager.jsonl", "engine_requested eager, its records auto"),
        ("micro/chat/T0_K4_auto.jsonl", "domain chat, its records code"),
        ("gpt2/code/T0_K4_auto.jsonl", "pair gpt2, its records micro"),
    ],
)
def test_a_file_holds_the_cell_that_its_name_says(tmp_path, place, says):
    path = simulate_job(tmp_path / "elsewhere", Truth(), 4)
    copy = tmp_path / "runs" / place
    copy.parent.mkdir(parents=True)
    path.rename(copy)
    with pytest.raises(SpecdecError, match=says):
        make_tables([copy])


def test_a_file_of_any_other_name_is_read_as_before(tmp_path):
    path = simulate_job(tmp_path, Truth(), 4)
    copy = path.rename(tmp_path / "mine.jsonl")
    assert len(make_tables([copy]).cells) == 1


def test_records_of_an_earlier_version_do_not_say_how_many_there_are(tmp_path):
    path = simulate_job(tmp_path, Truth(), 4)
    edit_records(path, lambda record: record.pop("job_prompts"))
    assert json.loads(lines_of(path)[0]).get("job_prompts") is None
    assert make_tables([path]).cells.n.tolist() == [10]

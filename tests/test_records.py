"""Records: complete, one line each, and a torn line is never taken for one."""

import json
from dataclasses import fields

import pytest

from specdec.profiling.metrics import BenchmarkConfig, GenerationResult
from specdec.profiling.records import append_records, make_record, read_records
from specdec.utils.errors import SpecdecError

CONFIG = BenchmarkConfig("micro", 4, 0.0, 48, "code", 0, prompt_id="code_000", engine="auto")
RESULT = GenerationResult([5, 6, 7], [0.1, 0.2, 0.0], 0.3, 90.0, 0.1, 0.5, 2.0, 1, engine="eager")


@pytest.fixture
def record() -> dict:
    return make_record(
        CONFIG,
        RESULT,
        job_K=4,
        paired=True,
        order_index=1,
        prompt_tokens=12,
        text="é\n",
        code_digest="0123456789abcdef",
        environment={"device": "a processor", "threads": 1},
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "T0.0_K4.jsonl"


def test_a_record_says_what_was_asked_what_came_out_and_where(record):
    assert record["schema_version"] == 1
    assert record["config_hash"] == CONFIG.config_hash()
    assert (record["pair"], record["domain"], record["K"], record["job_K"]) == (
        "micro",
        "code",
        4,
        4,
    )
    assert record["generated_ids"] == [5, 6, 7]
    assert record["environment"]["threads"] == 1


def test_a_record_holds_every_field_of_request_and_result(record):
    renamed = {"model_pair_name": "pair", "prompt_domain": "domain", "engine": "engine_requested"}
    asked = {renamed.get(field.name, field.name) for field in fields(BenchmarkConfig)}
    came_out = {field.name for field in fields(GenerationResult)}
    assert not asked & came_out
    assert asked | came_out <= set(record)


def test_the_engine_asked_for_and_the_engine_used_stand_side_by_side(record):
    assert (record["engine_requested"], record["engine"]) == ("auto", "eager")


def test_a_result_comes_back_out_of_its_record(record):
    assert GenerationResult.from_dict(json.loads(json.dumps(record))) == RESULT


def test_an_incomplete_record_cannot_be_made():
    with pytest.raises(TypeError, match="environment"):
        make_record(CONFIG, RESULT, job_K=4, paired=True)


def test_what_is_appended_is_read_back(path, record):
    append_records(path, [record])
    append_records(path, [record | {"K": 0}, record | {"K": 2}])
    assert [line["K"] for line in read_records(path)] == [4, 0, 2]
    assert read_records(path)[0] == record
    assert path.read_bytes().count(b"\n") == 3


def test_empty_lines_are_passed_over(path, record):
    append_records(path, [record])
    path.write_text("\n" + path.read_text() + "\n\n")
    assert read_records(path) == [record]


def test_a_missing_file_is_a_clear_error(path):
    with pytest.raises(SpecdecError, match="T0.0_K4.jsonl: cannot read the records"):
        read_records(path)


@pytest.mark.parametrize("broken", ['{"K": 4', "[1]", "7", "\x00\x00"])
@pytest.mark.parametrize("tolerate", [False, True])
def test_a_broken_line_in_the_middle_names_file_and_line(path, record, broken, tolerate):
    append_records(path, [record])
    whole = path.read_text()
    path.write_text(whole + broken + "\n" + whole)
    with pytest.raises(SpecdecError, match="T0.0_K4.jsonl:2: "):
        read_records(path, tolerate_torn_tail=tolerate)


def test_records_of_another_schema_are_refused(path, record):
    append_records(path, [record | {"schema_version": 2}])
    with pytest.raises(SpecdecError, match="schema version 2"):
        read_records(path)


def torn(path, record, at: int) -> None:
    """Two records, and a third of which only the first `at` bytes reached the disk."""
    append_records(path, [record, record])
    path.write_bytes(path.read_bytes() + json.dumps(record).encode()[:at])


@pytest.mark.parametrize("at", [1, 40, 400])
def test_a_torn_last_line_is_an_error_or_left_out_as_asked(path, record, at):
    torn(path, record, at)
    assert len(read_records(path, tolerate_torn_tail=True)) == 2
    with pytest.raises(SpecdecError, match=":3: not a line of JSON"):
        read_records(path)


@pytest.mark.parametrize("at", [1, 40, 400])
def test_appending_after_a_torn_line_cuts_it_off(path, record, at):
    torn(path, record, at)
    append_records(path, [record])
    assert len(read_records(path)) == 3


def test_a_last_record_that_only_lacks_its_newline_is_kept(path, record):
    append_records(path, [record])
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert len(read_records(path, tolerate_torn_tail=True)) == 1
    append_records(path, [record])
    assert len(read_records(path)) == 2


def test_an_empty_file_holds_no_records(path):
    path.parent.mkdir()
    path.touch()
    assert read_records(path) == read_records(path, tolerate_torn_tail=True) == []

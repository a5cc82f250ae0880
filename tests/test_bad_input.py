"""Bad input: one line that says what, where and what to do, an exit code, and no traceback.

One table for every part of the project; each part's own tests look closer.
"""

from __future__ import annotations

import errno
import json
import sys

import pytest
import torch

from specdec.analysis.tables import write_tables
from specdec.data.prompts import PromptDataset
from specdec.data.sources import load_texts, parse_source
from specdec.decoding.autoregressive import AutoregressiveDecoder
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.models.loading.loader import load_model
from specdec.models.registry import get_pair
from specdec.profiling.records import read_records
from specdec.utils.errors import cli
from tests.tiny import make_model, wrap


def written(folder, text):
    path = folder / "input.jsonl"
    path.write_text(text)
    return path


def source(folder, text, **spec):
    path = written(folder, text)
    return load_texts(parse_source("code", {"path": str(path), "field": "prompt"} | spec), print)


def generate(**settings):
    request = dict(prompt_ids=[1, 2, 3], max_new_tokens=4) | settings
    return AutoregressiveDecoder(wrap(make_model())).generate(**request)


def without_bitsandbytes(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    return load_model("resources/micro/target", "int4", "cpu")


def without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return load_model("resources/micro/target", "float32", "cuda")


def fail(error):
    raise error


HALF_A_RECORD = '{"schema_version": 1, "K": 4}\n{"schema_version": 1, "K'
CASES = {
    "unknown pair": (lambda folder, _: get_pair("mikro"), "no pair 'mikro'; did you mean 'micro'"),
    "missing model folder": (lambda folder, _: load_model("./no/model", "float32"), "no/model"),
    "no hub": (lambda folder, _: load_model("someone/something", "float32"), "someone/something"),
    "unknown dtype": (lambda folder, _: load_model("resources/micro/target", "fp8"), "fp8"),
    "no GPU": (lambda folder, patch: without_a_gpu(patch), "GPU"),
    "int4 without bitsandbytes": (
        lambda folder, patch: without_bitsandbytes(patch),
        "bitsandbytes",
    ),
    "out of memory": (lambda *_: fail(RuntimeError("CUDA out of memory. Tried")), "out of memory"),
    "host out of memory": (lambda *_: fail(MemoryError()), "out of memory"),
    "full disk": (lambda *_: fail(OSError(errno.ENOSPC, "full", "a/file")), "no space left"),
    "empty prompt file": (lambda folder, _: source(folder, ""), "input.jsonl"),
    "a field that isn't there": (lambda f, _: source(f, '{"text": "x"}\n'), "'prompt'"),
    "broken line in a source": (lambda f, _: source(f, '{"prompt": "x"}\n{"pro'), "2"),
    "broken prompt set": (lambda f, _: PromptDataset.load(written(f, "{")), "input.jsonl"),
    "broken registry": (lambda f, _: get_pair("x", written(f, "x: {draft")), "input.jsonl"),
    "wrong key in a registry": (
        lambda f, _: get_pair("x", written(f, json.dumps({"x": {"drafter": {}}}))),
        "'draft' is a required property",
    ),
    "broken record": (lambda f, _: read_records(written(f, HALF_A_RECORD)), "input.jsonl:2"),
    "broken record in a table": (
        lambda f, _: write_tables([written(f, HALF_A_RECORD)], f),
        "input.jsonl:2",
    ),
    "K below 1": (lambda *_: SpeculativeDecoder(wrap(make_model()), wrap(make_model()), 0), "K"),
    "temperature below 0": (lambda *_: generate(temperature=-1), "temperature -1"),
    "top_p of 0": (lambda *_: generate(top_p=0.0), "(0, 1]"),
    "top_p above 1": (lambda *_: generate(top_p=1.5), "(0, 1]"),
    "empty prompt": (lambda *_: generate(prompt_ids=[]), "prompt is empty"),
    "prompt beyond the context": (lambda *_: generate(prompt_ids=[1] * 600), "context"),
    "vocabularies that can't be compared": (
        lambda *_: SpeculativeDecoder(wrap(make_model(vocab_size=9)), wrap(make_model()), 2),
        "tokenizers",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_ends_a_command_in_one_line(case, tmp_path, monkeypatch, capsys):
    attempt, expected = CASES[case]
    monkeypatch.delenv("SPECDEC_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as ended:
        cli(lambda: attempt(tmp_path, monkeypatch))
    assert ended.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ") and expected in line
    assert "Traceback" not in line and "set SPECDEC_TRACEBACK" not in line


def test_a_traceback_is_shown_where_it_is_asked_for(monkeypatch, capsys):
    monkeypatch.setenv("SPECDEC_TRACEBACK", "1")
    with pytest.raises(SystemExit):
        cli(lambda: get_pair("mikro"))
    assert "Traceback" in capsys.readouterr().err

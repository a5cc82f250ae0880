"""Fixtures shared by the suite. The suite works on the CPU, and never on the network."""

from __future__ import annotations

import gc
import logging
import os
from collections import Counter
from contextlib import nullcontext

# Before torch and transformers are imported: no network, and no more threads than asked for.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from specdec.engine import fast_model
from tests.tiny import make_model, make_tokenizer, perturbed, wrap

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Files with the most slow tests first: one that is begun last would be waited for alone."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])  # a file's own order stays


def pytest_collection_finish():
    """What is imported by now stays: a job collects garbage before each generation, and would look
    through all of torch and transformers each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def tiny_model():
    """The factory of tests.tiny."""
    return make_model


@pytest.fixture(scope="session")
def tiny_wrapper(tiny_tokenizer):
    return wrap(make_model(vocab_size=len(tiny_tokenizer)), tiny_tokenizer)


@pytest.fixture(scope="session")
def tiny_pair(tiny_tokenizer, tiny_wrapper):
    """`(draft, target)` of one tokenizer; the draft agrees with the target now and then."""
    return wrap(perturbed(tiny_wrapper.model), tiny_tokenizer), tiny_wrapper


@pytest.fixture(autouse=True)
def log_lines_go_where_they_went():
    """A command that sends its log lines to stdout does so for its own test alone."""
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict]
    before = [(log, log.handlers) for log in loggers if log.name.startswith("specdec.")]
    yield
    for log, handlers in before:
        log.handlers = handlers


@pytest.fixture
def uncompiled(monkeypatch):
    """The pieces of the compiled engine as they are, without the compiler and our kernels."""
    monkeypatch.setattr(fast_model, "compile_ahead", lambda module, *rest: module)
    monkeypatch.setattr(fast_model, "load_operators", lambda folder: None)
    monkeypatch.setattr(fast_model, "graft", lambda model, *how, **asked: nullcontext())

"""The times that a plan rests on: one function a quantity, each in seconds, each of one sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np
import torch

from specdec.decoding.autoregressive import AutoregressiveDecoder
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.engine.capture import CapturedPass, on_device
from specdec.engine.fast_model import fast_model
from specdec.engine.session import FastSession
from specdec.method.rule import match
from specdec.models.products import ProductsInFloat32
from specdec.models.wrapper import ModelWrapper, Session
from specdec.profiling.timer import cuda_sync_time

PRODUCTS = 9  # that are timed to tell a slow dtype
STEPS = 8  # of the baseline, in a sample of what a step costs besides its pass
ROUNDS = 2  # at least, in a sample of what a round costs besides its passes


def random_tokens(wrapper: ModelWrapper, count: int) -> torch.Tensor:
    """`[count]` token ids, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(wrapper.vocab_size, (count,), generator=generator).to(wrapper.device)


def reader(
    wrapper: ModelWrapper, context: int, counts: Sequence[int], engine: str, as_draft: bool = False
) -> Session | FastSession:
    """A session behind `context` tokens, for passes over as many more as `counts` says.

    Compiled ones are captured on a GPU, as those of a decoder are.

    The cache is filled with what one token left in it, over and over: a pass takes as long whatever
    stands there, and to read a context takes minutes where a dtype is slow.
    """
    session = Session(wrapper)
    with ProductsInFloat32():
        session.read(random_tokens(wrapper, 1), keep=1)
    for layer, parts in enumerate(session.cache):
        keys, values = (part.expand(-1, -1, context - 1, -1) for part in parts)
        session.cache.update(keys, values, layer)
    if engine == "eager":
        return session
    model = fast_model(wrapper, as_draft)
    _ = model.run  # compiled here, so that no measure holds it
    cache, captured = model.take_cache(context + max(counts)), None
    if wrapper.device.type == "cuda":
        with on_device(wrapper.device):
            captured = CapturedPass(model.run, cache, counts, wrapper.context_length, model.pool)
    fast = FastSession(model, cache, captured)
    fast.cache.fill(session.cache)
    fast.length = context
    return fast


def slowdown(dtype: torch.dtype, device: torch.device) -> float:
    """How many times as long as in float32 products of this dtype take on a device, at worst."""
    return max(
        _product(rows, dtype, device) / _product(rows, torch.float32, device) for rows in (1, 64)
    )


def _product(rows: int, dtype: torch.dtype, device: torch.device) -> float:
    inputs, weights = (torch.ones(n, 1024, dtype=dtype, device=device) for n in (rows, 1024))
    samples = []
    for _ in range(PRODUCTS):
        begin = cuda_sync_time(device)
        torch.nn.functional.linear(inputs, weights)
        samples.append(cuda_sync_time(device) - begin)
    return min(samples)


def time_pass(wrapper: ModelWrapper, session: Session | FastSession, count: int) -> float:
    """One pass over `count` tokens behind what the session has read, which it then forgets."""
    context, tokens = session.length, random_tokens(wrapper, count)
    begin = cuda_sync_time(wrapper.device)
    session.read(tokens, keep=count)
    elapsed = cuda_sync_time(wrapper.device) - begin
    session.roll_back(context)
    return elapsed


def time_round_rest(decoder: SpeculativeDecoder, context: int) -> float:
    """What a speculative round takes besides its draft steps and its verification."""
    budget = 1 + ROUNDS * (decoder.num_draft_tokens + 1)
    result = _generate(decoder, context, budget)
    passes = (result.draft_time_total_ms + result.verify_time_total_ms) / 1e3
    return (result.decode_time - passes) / result.num_speculation_rounds


def time_step_rest(decoder: AutoregressiveDecoder, context: int) -> float:
    """What a step of the baseline takes besides its pass."""
    result = _generate(decoder, context, 1 + STEPS)
    return (result.decode_time - result.phase_times_ms["verify"] / 1e3) / STEPS


def time_rule(logits: torch.Tensor) -> float:
    """The greedy acceptance rule alone, from logits `[K+1, V]` to token ids on the host.

    With one row it is the baseline's choice of a token.
    """
    valid = torch.ones(len(logits) - 1, dtype=torch.bool, device=logits.device)
    begin = cuda_sync_time(logits.device)
    tokens = [row.argmax(-1) for row in logits[:-1]]  # the draft's choices, a step each
    drafted = torch.stack(tokens) if tokens else logits.new_zeros(0, dtype=torch.long)
    count, following = match(logits.argmax(-1), drafted, valid)
    torch.cat([drafted, torch.stack([count, following])]).tolist()
    return perf_counter() - begin


def interleave(
    measures: dict[str, Callable[[], float]],
    seconds: float,
    at_least: int,
    deadline: float = math.inf,
    show: Callable[[str, float], None] = lambda name, seconds: None,
    times: dict[str, np.ndarray] | None = None,
    essential: int | None = None,
) -> dict[str, np.ndarray]:
    """Samples of each measure, taken in turn for about `seconds`, each as often as the others.

    The first of each is a warm-up that counts only where there is no other; `show` is handed it.
    The order turns round every time, so that a machine that slows down does so for all.

    Args:
        deadline: of `perf_counter`: no turn begins that would end after it, `at_least` or not.
        times: where the samples are put, also when the measuring is interrupted.
        essential: how many of the measures, the first, are taken once whatever the deadline; of
            the others none begins that would end after it if it took as long as the one before
            it. None: all of them.
    """
    times = {} if times is None else times
    first, samples = {}, {name: [] for name in measures}
    before = perf_counter()
    try:
        for place, (name, measure) in enumerate(measures.items()):
            now = perf_counter()
            if essential is not None and place >= essential and 2 * now - before > deadline:
                break
            before = now
            first[name] = measure()
            show(name, first[name])
        order, begin = list(measures), perf_counter()
        while perf_counter() + sum(first.values()) < deadline and (
            perf_counter() < begin + seconds or len(samples[order[0]]) < at_least
        ):
            for name in order:
                samples[name].append(measures[name]())
            order.reverse()
    finally:
        whole = min(map(len, samples.values()))  # turns that all of them had
        times |= {name: np.array(samples[name][:whole] or [first[name]]) for name in first}
    return times


def _generate(decoder: AutoregressiveDecoder | SpeculativeDecoder, context: int, budget: int):
    prompt = random_tokens(decoder.target, context)
    return decoder.generate(prompt, budget, seed=0, eos_token_id=None)

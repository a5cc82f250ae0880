"""What a user would pick instead: `generate` of transformers, alone and with an assistant model.

On the same loaded weights and prompts. Draft tokens are K in every round (constant schedule, no
stop at low confidence), but for the last rounds, in which transformers drafts no more than can
still be emitted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from time import perf_counter

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from specdec.benchmark.arms import Arm, BenchPrompt, Request, Run
from specdec.models.loading.loader import quiet
from specdec.models.wrapper import ModelWrapper
from specdec.profiling.memory import MemoryTracker
from specdec.utils.errors import SpecdecError


class Bursts(BaseStreamer):
    """Notes when tokens come, and how many together; the first thing it is handed is the prompt."""

    def __init__(self) -> None:
        self.begin = perf_counter()
        self.seconds: list[float] = []  # since the beginning
        self.counts: list[int] = []
        self._prompt_came = False

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_came:
            self.seconds.append(perf_counter() - self.begin)
            self.counts.append(value.numel())
        self._prompt_came = True

    def end(self) -> None:
        pass


def generate_arm(target: ModelWrapper, request: Request) -> Arm:
    """transformers' `generate` with the target alone."""
    return _arm(target, None, 0, request, {})


def assisted_arm(
    draft: ModelWrapper, target: ModelWrapper, K: int, request: Request, shared_vocabulary: bool
) -> Arm:
    """transformers' assisted generation.

    Raises SpecdecError where it can't run without harm: sampling across vocabularies it rewrites
    the draft's embeddings and head in place.
    """
    options = {"assistant_model": draft.model}
    if not shared_vocabulary or draft.logit_size != target.logit_size:
        if request.temperature > 0:
            raise SpecdecError(
                "across vocabularies its sampling rewrites the draft's weights in place, and is "
                "not the target's distribution"
            )
        if draft.tokenizer is None or target.tokenizer is None:
            raise SpecdecError("two vocabularies need both tokenizers, and there are none")
        options |= {"tokenizer": target.tokenizer, "assistant_tokenizer": draft.tokenizer}
    return _arm(target, draft, K, request, options)


def arm_name(K: int) -> str:
    return f"transformers, K = {K}" if K else "transformers"


def _arm(
    target: ModelWrapper,
    draft: ModelWrapper | None,
    K: int,
    request: Request,
    options: dict,
) -> Arm:
    config = _generation_config(request, K)

    def generate(prompt: BenchPrompt) -> Run:
        ids = torch.tensor([prompt.ids], device=target.device)
        memory = MemoryTracker(target.device)
        torch.manual_seed(request.seed)
        with ExitStack() as stack:
            stack.enter_context(quiet())
            for wrapper in [target] if draft is None else [target, draft]:
                stack.enter_context(_configured(wrapper, config))
            stack.enter_context(memory.phase("whole"))
            bursts = Bursts()
            output = target.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                streamer=bursts,
                **options,
            )
        shared = "tokenizer" not in options
        amounts = _amounts(bursts, K, request.max_new_tokens, proposals_known=shared)
        return Run(output[0, len(prompt.ids) :].tolist(), amounts, memory.peak_mb)

    return Arm(arm_name(K), K, generate)


def _generation_config(request: Request, K: int) -> GenerationConfig:
    sampling = {}
    if request.temperature > 0:
        sampling = {
            "temperature": request.temperature,
            "top_k": request.top_k,
            "top_p": request.top_p,
        }
    drafting = {}
    if K > 0:
        drafting = {
            "num_assistant_tokens": K,
            "num_assistant_tokens_schedule": "constant",
            "assistant_confidence_threshold": 0.0,
        }
    return GenerationConfig(
        do_sample=request.temperature > 0,
        max_new_tokens=request.max_new_tokens,
        min_new_tokens=request.max_new_tokens,
        eos_token_id=None,
        pad_token_id=0,
        use_cache=True,
        **sampling,
        **drafting,
    )


@contextmanager
def _configured(wrapper: ModelWrapper, config: GenerationConfig) -> Iterator[None]:
    """Put `config` in the place of the model's own, and that back at the end.

    transformers reads the number of draft tokens, their schedule and the confidence from the
    assistant's own configuration, and fills what a call leaves None, such as the end token, from
    the model's own.
    """
    own = wrapper.model.generation_config
    wrapper.model.generation_config = config
    try:
        yield
    finally:
        wrapper.model.generation_config = own


def _amounts(
    bursts: Bursts, K: int, max_new_tokens: int, proposals_known: bool
) -> dict[str, float]:
    """AMOUNTS of a run. Its first burst holds the prefill and, with an assistant, a round."""
    emitted, proposed, full_rounds, full_rounds_s = bursts.counts[0], 0, 0, 0.0
    for last, now, count in zip(
        bursts.seconds, bursts.seconds[1:], bursts.counts[1:], strict=False
    ):
        drafted = min(K, max_new_tokens - emitted - 1)
        proposed += drafted
        if drafted == K:
            full_rounds += 1
            full_rounds_s += now - last
        emitted += count
    rounds, steps = len(bursts.counts) - 1, emitted - bursts.counts[0]
    return {
        "tokens": emitted,
        "total_s": bursts.seconds[-1],
        "steps": steps,
        "decode_s": bursts.seconds[-1] - bursts.seconds[0],
        "rounds": rounds,
        "full_rounds": full_rounds,
        "full_rounds_s": full_rounds_s,
        # Text drafted by another vocabulary has a number of tokens that transformers keeps to
        # itself.
        "accepted": steps - rounds if proposals_known else 0,
        "proposed": proposed if proposals_known else 0,
        "draft_ms": float("nan"),
        "verify_ms": float("nan"),
    }

"""The prompts of a benchmark: built-in ones, or random ids where there is no tokenizer."""

from __future__ import annotations

import torch

from specdec.benchmark.arms import BenchPrompt
from specdec.data.prompts import choose_prompts
from specdec.data.sources import BUILTIN, load_texts, parse_source
from specdec.decoding.loaded_pair import Encoded, LoadedPair
from specdec.models.wrapper import ModelWrapper
from specdec.utils.errors import SpecdecError
from specdec.utils.logging import get_logger

log = get_logger(__name__)


def builtin_prompts(
    pair: LoadedPair, domain: str, count: int, reach: int, seed: int
) -> list[BenchPrompt]:
    """`count` built-in prompts that leave both models room for `reach` tokens after them."""
    source = load_texts(parse_source(domain, BUILTIN), log.warning)
    chosen, _ = choose_prompts(domain, source, count, seed, pair.limits(reach))
    return [BenchPrompt(prompt.prompt_id, pair.encode(prompt.text)) for prompt in chosen]


def random_prompts(
    draft: ModelWrapper, target: ModelWrapper, length: int, count: int, reach: int, seed: int
) -> list[BenchPrompt]:
    """`count` prompts of `length` random token ids, for models without a tokenizer."""
    for wrapper in (draft, target):
        limit = wrapper.context_length
        if limit is not None and length + reach > limit:
            raise SpecdecError(
                f"--prompt-tokens {length} and {reach} tokens after them are past the context of "
                f"{wrapper.name}, {limit} tokens; lower --prompt-tokens or --max-new-tokens"
            )
    generator = torch.Generator().manual_seed(seed)
    size = min(draft.vocab_size, target.vocab_size)
    ids = torch.randint(size, (count, length), generator=generator).tolist()
    return [BenchPrompt(f"random_{place:03d}", Encoded(row)) for place, row in enumerate(ids)]

"""Models and tokenizers that the tests make on the spot: no download, a few milliseconds each."""

from __future__ import annotations

import copy

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch.nn.functional import pad
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from specdec.models.wrapper import ModelWrapper

KINDS = ("gpt2", "llama", "phi3", "qwen2", "neox")
END = "<|endoftext|>"
TEXT = [
    "The quick brown fox jumps over the lazy dog.",
    "def add(a, b):\n    return a + b\n\nfor i in range(10):\n    print(i)\n",
    "The fox and the dog were quick; the brown bear was not.",
]


def make_tokenizer(vocab_size: int = 384, text: list[str] = TEXT) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `vocab_size` tokens, the first of which is the end token."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END)


def make_model(kind="gpt2", vocab_size=384, layers=2, seed=0, dtype=torch.float32, **settings):
    """A model of random weights, spread widely enough that its distributions have peaks."""
    common = dict(
        vocab_size=vocab_size, bos_token_id=0, eos_token_id=0, pad_token_id=0, initializer_range=0.4
    )
    rotary = dict(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=512,
    )
    model_class, config_class, shape = {
        "gpt2": (
            GPT2LMHeadModel,
            GPT2Config,
            dict(n_embd=32, n_layer=layers, n_head=4, n_positions=512),
        ),
        "llama": (LlamaForCausalLM, LlamaConfig, rotary | dict(num_key_value_heads=2)),
        "phi3": (Phi3ForCausalLM, Phi3Config, rotary | dict(num_key_value_heads=4)),
        "qwen2": (Qwen2ForCausalLM, Qwen2Config, rotary | dict(num_key_value_heads=2)),
        "neox": (GPTNeoXForCausalLM, GPTNeoXConfig, rotary),
    }[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config_class(**(common | shape | settings)))
    return model.eval().to(dtype)


def perturbed(model, scale: float = 0.05, seed: int = 1):
    """A copy of a model with noise on its weights: a draft that agrees with it now and then."""
    generator = torch.Generator().manual_seed(seed)
    noisy = copy.deepcopy(model)
    with torch.no_grad():
        for weight in noisy.parameters():
            weight += scale * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return noisy


def wrap(model, tokenizer=None) -> ModelWrapper:
    return ModelWrapper(model, tokenizer, next(model.parameters()).device)


class TableModel(torch.nn.Module):
    """A language model whose next token depends on the last two, by a table `[V, V, V]` of logits.

    It reads the token before last from its cache, so a cache that was rolled back wrongly gives
    other distributions. A pass costs some tens of microseconds.
    """

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(table, requires_grad=False)
        vocab_size = len(table)
        no_specials = dict(bos_token_id=None, eos_token_id=None)
        self.config = LlamaConfig(
            vocab_size=vocab_size, max_position_embeddings=4096, **no_specials
        )
        self.generation_config = None

    def forward(self, input_ids, past_key_values=None, use_cache=True, logits_to_keep=0):
        n = input_ids.shape[1]
        ids, first = input_ids.view(1, 1, n, 1).double(), 0
        if past_key_values is not None:
            first = past_key_values.get_seq_length()
            ids, _ = past_key_values.update(ids, ids, 0)
        places = first + torch.arange(n)
        after_0 = pad(ids.view(-1), (1, 0)).long()  # before the first token stands token 0
        logits = self.table[after_0[places], after_0[places + 1]].unsqueeze(0)  # [1, n, V]
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)


def make_table(vocab_size: int, seed: int, scale: float = 1.5) -> torch.Tensor:
    """Logits `[V, V, V]`, float64."""
    generator = torch.Generator().manual_seed(seed)
    shape = (vocab_size, vocab_size, vocab_size)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def table_pair(vocab_size: int = 4, mix: float = 1.0, seed: int = 0):
    """`(draft, target)` table models; `mix` 0 makes them equal, 1 makes them strangers."""
    target = make_table(vocab_size, seed)
    draft = (1 - mix) * target + mix * make_table(vocab_size, seed + 1)
    return wrap(TableModel(draft)), wrap(TableModel(target))

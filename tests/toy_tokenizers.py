"""Tokenizers of both families, made on the spot: byte-level BPE, and BPE like sentencepiece's."""

import json
from functools import cache

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "def add(first, second):\n    return first + second\n\n\n",
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind at all.",
    "Привет, мир! как дела? Привет ещё раз, мир.",
    "日本語の文章と中文的文章,日本語の文章。",
    "for i in range(10):\n        print(i,    i * i)  # squares\n" * 3,
    "naïve café 😀 😀 — e\u0301",
]
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@cache
def byte_level(vocab_size: int = 420, style: str = "gpt2") -> PreTrainedTokenizerFast:
    """GPT-2's family. Styles: "gpt2"; "neox" (normal form, runs of spaces as added tokens);
    "ascii" (bytes above 127 have no token); "llama3" (its splits, and a begin-of-text token)."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=style == "llama3"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if style == "neox":
        tokenizer.normalizer = normalizers.NFC()
    if style == "llama3":
        words = pre_tokenizers.Split(Regex(LLAMA3_WORDS), behavior="isolated")
        in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, in_bytes])
    corpus = [text for text in CORPUS if text.isascii()] if style == "ascii" else CORPUS
    alphabet = [chr(c) for c in range(33, 127)] + ["Ġ", "Ċ"]
    if style != "ascii":
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=alphabet,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    if style == "neox":
        tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in (8, 4, 2)])
    bos = "<|endoftext|>"
    if style == "llama3":
        bos = "<|begin|>"
        tokenizer.add_special_tokens([bos])
        tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token="<|endoftext|>"
    )


@cache
def sentencepiece(vocab_size: int = 320, style: str = "llama") -> PreTrainedTokenizerFast:
    """Llama-2's family, with byte fallback, and a space put before every text. Styles: "llama" (by
    normalizers, no pre-tokenizer), "metaspace" (by a pre-tokenizer)."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    learned = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    merges = [tuple(m) for m in json.loads(trained.to_str())["model"]["merges"]]
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    tokens += [token for token, _ in learned]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    to_space = decoders.Replace("▁", " ")
    if style == "llama":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [to_space, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    if style == "llama":  # as Llama-2's: every text begins with <s>
        wrapped.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
        )
    return wrapped

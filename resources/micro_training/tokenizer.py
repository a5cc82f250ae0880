"""Byte-level BPE tokenizers, trained on the corpus."""

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"


def pre_tokenizer(cut: str):
    """How text is cut before merging: `gpt2` at words and punctuation, `spaces` at spaces only.

    Each line break stands alone: a prompt that ends with one is cut where training text is cut.
    """
    lines = pre_tokenizers.Split("\n", "isolated")
    if cut == "gpt2":
        return pre_tokenizers.Sequence([lines, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    words = pre_tokenizers.Split(Regex(r" ?\S+|\s+(?!\S)|\s+"), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([lines, words, byte_level])


def train_tokenizer(
    texts: list[str], vocabulary: int, cut: str, context: int
) -> PreTrainedTokenizerFast:
    """Train a BPE; token 0 is the end of text (also beginning and padding)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer(cut)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def encode_documents(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Token ids of each text after an end of text (which says that a document begins)."""
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [[tokenizer.eos_token_id, *ids] for ids in encoded]


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer saved in `folder`."""
    return PreTrainedTokenizerFast.from_pretrained(folder)

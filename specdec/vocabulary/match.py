"""Whether two models share a vocabulary, told by what their tokens are and not by how many.

The outcome picks the path of a pair. `same` and `padded` decode by plain draft-and-verify: an id
means the same to both. `different` needs a method of Timor et al. 2025 (arXiv 2502.05202), and a
match holds the maps for it between the two vocabularies.
"""

from dataclasses import dataclass
from functools import cached_property

import torch

from specdec.vocabulary.token_bytes import ByteTokenizer


@dataclass(frozen=True, eq=False)
class VocabularyMatch:
    """How the vocabularies of a draft and a target relate; `compare` makes it."""

    kind: str  # "same", "padded" or "different"
    draft: ByteTokenizer
    target: ByteTokenizer
    respelled: int = 0  # special or unused ids below both sizes that the two write differently

    @property
    def draft_size(self) -> int:
        """Number of ids that the draft can propose: its logits, cut to its tokenizer."""
        return self.draft.size

    @property
    def target_size(self) -> int:
        """Number of ids that the target can emit: its logits, cut to its tokenizer."""
        return self.target.size

    @property
    def is_shared(self) -> bool:
        """Whether plain draft-and-verify applies."""
        return self.kind != "different"

    @cached_property
    def draft_to_target(self) -> torch.Tensor:
        """`[draft_size]`, int64: the target id of every draft id, −1 outside the intersection.

        Several draft ids may have one target id (their `q` is to be added up, by `index_add`). Of
        several target ids of one byte string it is the one that the target's tokenizer writes.
        """
        if self.is_shared:
            ids = torch.arange(self.draft_size)
        else:
            id_of, special = self.target.id_of, self.draft.special_ids_in(self.target)
            spelled = enumerate(self.draft.bytes)
            ids = torch.tensor([id_of.get(s, special.get(i, -1)) for i, s in spelled])
        return ids.masked_fill(ids >= self.target_size, -1)

    @cached_property
    def in_draft(self) -> torch.Tensor:
        """`[target_size]`, bool: the target ids that the draft can propose."""
        mask = torch.zeros(self.target_size, dtype=torch.bool)
        mask[self.draft_to_target[self.draft_to_target >= 0]] = True
        return mask

    @property
    def overlap(self) -> int:
        """Number of target tokens that the draft can propose (of equal byte strings, one)."""
        return int(self.in_draft.sum())

    @property
    def draft_coverage(self) -> float:
        """Share of the draft's tokens that the target has."""
        return float((self.draft_to_target >= 0).double().mean())

    @property
    def target_coverage(self) -> float:
        """Share of the target's tokens that the draft can propose."""
        return self.overlap / self.target_size

    def describe(self) -> str:
        """One line for people and records."""
        if not self.is_shared:
            return (
                f"different vocabularies: {self.overlap} tokens in common, "
                f"{self.draft_coverage:.1%} of the draft's {self.draft_size}, "
                f"{self.target_coverage:.1%} of the target's {self.target_size}"
            )
        sizes = f"{self.target_size} tokens"
        if self.kind == "padded":
            sizes += f", of the draft {self.draft_size}, in logits of different widths"
        respelled = f" ({self.respelled} special tokens respelled)" if self.respelled else ""
        return f"{self.kind} vocabulary: {sizes}{respelled}"


def compare(
    draft_tokenizer, target_tokenizer, draft_logit_size: int, target_logit_size: int
) -> VocabularyMatch:
    """Compare two tokenizers, whose models give logits of the two sizes.

    `same`: every id means the same to both. `padded`: so does every id that both have, and the
    widths of the logits differ or one tokenizer has more tokens at its end; the draft proposes only
    ids that both have, and has an embedding for each id that the target can emit. Else `different`.

    Special and unused ids may be written differently (Llama-3's reserved ones were named later): an
    id that stands for no text on either side changes no text, and the match counts them.

    Raises:
        SpecdecError: for different tokenizers of which one is not fast, or of an unknown family.
    """
    draft = ByteTokenizer(draft_tokenizer, draft_logit_size)
    target = ByteTokenizer(target_tokenizer, target_logit_size)
    respelled = _respelled(draft, target)
    # The draft reads every token that the target emits, also those that it can't propose.
    if respelled is None or target.size > draft_logit_size:
        return VocabularyMatch("different", draft, target)
    widths_agree = draft.size == target.size and draft_logit_size == target_logit_size
    return VocabularyMatch("same" if widths_agree else "padded", draft, target, respelled)


def coverage(match: VocabularyMatch, target_probs: torch.Tensor) -> float:
    """The target's mean probability mass on tokens that the draft can propose: a ceiling on α.

    Args:
        match: the comparison of the two vocabularies.
        target_probs: `[N, V]`, V at least the target's size; one distribution per row.
    """
    inside = match.in_draft.to(target_probs.device)
    return float(target_probs[:, : match.target_size][:, inside].double().sum(-1).mean())


def _respelled(draft: ByteTokenizer, target: ByteTokenizer) -> int | None:
    """How many ids without text are written differently, among the ids that both have.

    None if any id with text on either side means something else on the other.
    """
    if draft.spelling == target.spelling and _writing(draft) == _writing(target):
        return 0
    respelled = 0
    for i, (ours, theirs) in enumerate(zip(draft.bytes, target.bytes, strict=False)):
        if ours is None and theirs is None:
            respelled += draft.special.get(i) != target.special.get(i)
        elif _content(draft, i) != _content(target, i):
            return None
    return respelled


def _writing(tokenizer: ByteTokenizer) -> tuple | None:
    """What turns tokens into text; None where a tokenizer has no such definition."""
    if not tokenizer.tokenizer.is_fast:
        return None
    keys = ("normalizer", "pre_tokenizer", "decoder", "added_tokens")
    definition = tokenizer.definition
    return *(definition[key] for key in keys), definition["model"].get("byte_fallback")


def _content(tokenizer: ByteTokenizer, i: int) -> bytes | None:
    spelled = tokenizer.bytes[i]
    return tokenizer.special[i].encode() if spelled is None and i in tokenizer.special else spelled

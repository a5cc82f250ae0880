"""Which class drafts: the one place that knows all ways to."""

from __future__ import annotations

from specdec.decoding.drafters.bridged import ExactMatchDraft, IntersectionDraft
from specdec.decoding.drafters.interface import Drafter
from specdec.decoding.drafters.model import DraftModel
from specdec.models.wrapper import ModelWrapper
from specdec.utils.errors import SpecdecError
from specdec.vocabulary.match import VocabularyMatch

# How a draft of another vocabulary proposes; "auto" takes what measured better
# (docs/decoding_methods.md): exact match at temperature 0, else the intersection.
VOCABULARY_METHODS = ("auto", "intersection", "exact_match")


def choose_method(vocabulary: str, vocabularies: VocabularyMatch | None, temperature: float) -> str:
    """How a draft model is to propose: "shared", "intersection" or "exact_match"."""
    if vocabularies is None or vocabularies.is_shared:
        return "shared"
    if vocabulary != "auto":
        return vocabulary
    if temperature == 0 or vocabularies.overlap == 0:
        return "exact_match"
    return "intersection"


def make_drafter(
    method: str, draft: ModelWrapper, target: ModelWrapper, vocabularies: VocabularyMatch | None
) -> Drafter:
    """The drafter of a method of `choose_method`.

    Raises:
        SpecdecError: where the intersection is asked for and there is none.
    """
    if method == "shared":
        return DraftModel(draft, target.vocab_size)
    if method == "exact_match":
        return ExactMatchDraft(draft, vocabularies)
    if vocabularies.overlap == 0:
        raise SpecdecError(
            f"{draft.name} and {target.name} have no token in common, so the "
            "intersection method has nothing to propose; use vocabulary='exact_match'"
        )
    return IntersectionDraft(draft, vocabularies)

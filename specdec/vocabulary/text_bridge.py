"""One text in two vocabularies: the draft's ids for whatever the target's ids spell, kept in step.

What the draft is shown changes how much is accepted, never what is emitted: so the ids here need
not be the ones that the draft's tokenizer would write for the whole text, but they spell its bytes.
"""

from collections.abc import Sequence

from specdec.vocabulary.token_bytes import ByteTokenizer

# How many draft tokens back a re-encoding may begin: what bounds the cost of a round.
WINDOW = 32
_WHITESPACE = b" \t\n\r\f\v"
_SPECIAL = b"\0"


class TextBridge:
    """The draft's context for a growing sequence of target ids.

    `draft_ids` spells the same bytes as the target ids fed so far, but for `unseen`. Special tokens
    become the draft's own (by content, else begin and end of text by their role) or are left out.
    A space that a tokenizer puts before every text is no part of it: at the beginning of the text,
    and nowhere else, the target's is taken away and the draft's put there.
    """

    # `_stream` is what the draft has to read: bytes, and a placeholder byte for each special token.
    # `_target_ends` and `_draft_ends` say where in it the tokens of both sides end.

    def __init__(self, draft: ByteTokenizer, target: ByteTokenizer) -> None:
        self._draft, self._target = draft, target
        self._special_of_target = target.special_ids_in(draft)
        self._special_of_draft = draft.special_ids_in(target)
        self.start([draft.bos] if draft.adds_bos else [], 0)

    def start(self, draft_ids: Sequence[int], target_length: int) -> None:
        """Begin anew, the draft shown `draft_ids` for the first `target_length` target ids.

        For a prompt that the draft reads in a form of its own (another chat template).
        """
        self.draft_ids = list(draft_ids)
        self._draft_ends = [0] * len(self.draft_ids)
        self._target_ends = [0] * target_length
        self._prompt_length = len(self.draft_ids)
        self._stream = bytearray()
        # Place of the first target token that is text; a given prompt counts as text.
        self._first_text = 0 if target_length else None

    @property
    def target_length(self) -> int:
        """How many target ids the draft's ids stand for."""
        return len(self._target_ends)

    @property
    def unseen(self) -> bytes:
        """The end of the text that the draft has no tokens for, such as part of a character."""
        return bytes(self._stream[self._draft_ends[-1] if self._draft_ends else 0 :])

    def extend(self, target_ids: Sequence[int]) -> int:
        """Append target ids; how many of the draft ids from before are still there, as a prefix."""
        kept = len(self.draft_ids)
        for i in target_ids:
            special = self._special_of_target.get(i)
            if special is None or self._is_second_bos(i):
                self._stream += self._text(i)
            else:
                kept = min(kept, self._read_text())
                self._stream += _SPECIAL
                self.draft_ids.append(special)
                self._draft_ends.append(len(self._stream))
            self._target_ends.append(len(self._stream))
        return min(kept, self._read_text())

    def to_target(self, draft_ids: Sequence[int]) -> list[int]:
        """Target ids for what the draft proposes behind its context, special-token text split.

        They spell exactly the proposed bytes, without what the target has already emitted, up to
        the last whole character and at most to the draft's end token. Empty where the proposal
        contradicts `unseen`.
        """
        data, special = b"", None
        for i in draft_ids:
            if (spelled := self._draft.bytes[i]) is None:
                special = self._special_of_draft.get(i)
                break
            data += spelled
        else:
            data = data[: _whole_characters(data)]
        if not data.startswith(self.unseen):
            return []
        data = self._at_start(data.removeprefix(self.unseen), self._draft, self._target)
        ids, position = [], 0
        for i, end in self._target.encode(data):
            if end - len(self._target.bytes[i]) != position:
                return ids  # the target can't spell what comes here
            ids.append(i)
            position = end
        return ids if special is None or position != len(data) else [*ids, special]

    def _is_second_bos(self, i: int) -> bool:
        return i == self._target.bos and self.target_length == 0 and self._prompt_length > 0

    def _text(self, i: int) -> bytes:
        """What target token `i`, the next one, adds to the stream."""
        # A prompt may hold ids beyond the tokenizer, which padded embeddings have.
        if i >= self._target.size or (spelled := self._target.bytes[i]) is None:
            return b""
        spelled = self._at_start(spelled, self._target, self._draft)
        if self._first_text is None:
            self._first_text = self.target_length
        return spelled

    def _at_start(self, data: bytes, reader: ByteTokenizer, writer: ByteTokenizer) -> bytes:
        """At the beginning of the text: one side's opening space made the other's."""
        if self._first_text is not None or not data:
            return data
        if reader.opens_with_space:
            data = data.removeprefix(b" ")
        return b" " + data if writer.opens_with_space else data

    def _read_text(self) -> int:
        """Bring the draft ids up to the stream; how many stayed as they were.

        Only the tokens behind a boundary that no later text can move are encoded again.
        """
        if (
            not self._draft_ends
            and not self._stream
            or self._draft_ends[-1:] == [len(self._stream)]
        ):
            return len(self.draft_ids)
        first = self._last_boundary()
        start = self._draft_ends[first - 1] if first else 0
        pieces = self._draft.encode(bytes(self._stream[start:]))
        kept = 0
        old = zip(self.draft_ids[first:], self._draft_ends[first:], strict=True)
        for (i, end), piece in zip(pieces, old, strict=False):
            if (i, start + end) != piece:
                break
            kept += 1
        self.draft_ids[first + kept :] = [i for i, _ in pieces[kept:]]
        self._draft_ends[first + kept :] = [start + end for _, end in pieces[kept:]]
        return first + kept

    def _last_boundary(self) -> int:
        """Number of draft tokens before the last place that later text can't merge across.

        That is before a space behind something else than white space; or behind a special token or
        the prompt; or, failing these, WINDOW tokens back.
        """
        last = len(self.draft_ids)
        for i in range(last, self._prompt_length, -1):
            before = self._draft.bytes[self.draft_ids[i - 1]]
            if before is None or i == last - WINDOW:
                return i
            opens_space = i < last and self._draft.bytes[self.draft_ids[i]].startswith(b" ")
            if opens_space and before[-1] not in _WHITESPACE:
                return i
        return self._prompt_length


def _whole_characters(data: bytes) -> int:
    """Length of `data` without the part of a character at its end."""
    for length in range(1, min(3, len(data)) + 1):
        byte = data[-length]
        if byte >= 0xC0:  # the first byte of a character of 2, 3 or 4 bytes
            needed = 2 + (byte >= 0xE0) + (byte >= 0xF0)
            return len(data) - length if needed > length else len(data)
        if byte < 0x80:
            break
    return len(data)

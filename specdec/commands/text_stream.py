"""Tokens printed as text while they come, with what the draft was right about in colour."""

from __future__ import annotations

import re
import sys

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what a decoder gives for bytes that are no character yet
HELD_BYTES = 3  # at most, of a character of UTF-8 that is not complete
CONTEXT = 8  # tokens that are decoded again before a new one, for a text depends on its neighbours

ACCEPTED, OWN, PLAIN = "\x1b[32m", "\x1b[33m", "\x1b[0m"  # green, yellow
LEGEND = f"{ACCEPTED}drafted and accepted{PLAIN}, {OWN}the target's own in its place{PLAIN}"


class TextStream:
    """Prints tokens as they come, so that after `flush` what was printed is the decoded text.

    What is not a whole character yet is held back: bytes at the end, and a run of tokens that stand
    for a byte each, which some decoders turn into text only as a whole. Each call decodes a bounded
    number of tokens for each new one, whatever came before.

    With `draft_tokens`, the K of a speculative run, tokens are coloured by where they came from.
    """

    def __init__(self, tokenizer, draft_tokens: int | None = None) -> None:
        self._tokenizer = tokenizer
        self._draft_tokens = draft_tokens
        self._undecided = _undecided(tokenizer)
        self._window: list[int] = []  # the last tokens, from a place whose text is decided
        self._printed = 0  # characters of the window's text
        self._began = False

    def __call__(self, tokens: list[int]) -> None:
        for token, colour in zip(tokens, self._colours(len(tokens)), strict=True):
            self._window.append(token)
            if token in self._undecided:
                continue
            text = self._text(self._window)
            broken = len(text) - len(text.rstrip(INCOMPLETE))
            self._print(text, len(text) - min(broken, HELD_BYTES), colour)
            self._forget(text)
        sys.stdout.flush()

    def flush(self) -> None:
        """Print what was held back: nothing more comes."""
        text = self._text(self._window)
        self._print(text, len(text), None)
        sys.stdout.flush()

    def _text(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)

    def _print(self, text: str, end: int, colour: str | None) -> None:
        piece = text[self._printed : end]
        self._printed += len(piece)
        if piece:
            print(f"{colour}{piece}{PLAIN}" if colour else piece, end="")

    def _forget(self, text: str) -> None:
        """Drop all but the last tokens, unless they are no text: it would begin in another way."""
        if len(self._window) > 2 * CONTEXT:
            tail = self._window[-CONTEXT:]
            tail_text, held = self._text(tail), len(text) - self._printed
            if len(tail_text) > held:
                self._window, self._printed = tail, len(tail_text) - held

    def _colours(self, count: int) -> list[str | None]:
        """Of a hand-over: the accepted tokens, then the one that the target put behind them.

        The first hand-over comes from the prompt alone; behind K accepted tokens nothing was
        replaced.
        """
        first, self._began = not self._began, True
        if self._draft_tokens is None or first:
            return [None] * count
        whole = count > self._draft_tokens
        return [ACCEPTED] * (count - 1) + [None if whole else OWN]


def _undecided(tokenizer) -> set[int]:
    """Tokens whose text what follows decides: bytes by name, and special ones, which have none.

    A run of the former, whatever of the latter is in it, is decoded as a whole.
    """
    vocabulary = getattr(tokenizer, "get_vocab", dict)()
    added = getattr(tokenizer, "added_tokens_decoder", {})
    named = {i for token, i in vocabulary.items() if re.fullmatch("<0x[0-9A-F]{2}>", token)}
    return named | {i for i, token in added.items() if token.special}

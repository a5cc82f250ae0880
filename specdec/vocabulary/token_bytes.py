"""What the tokens of a tokenizer are: their bytes, whatever the tokenizer writes them with.

Byte-level tokenizers (GPT-2's family) write every byte as a printable character. The style of
sentencepiece (Llama-2's family) writes a space as ▁, and a byte without a token of its own as
<0x0A>. Which it is stands in the tokenizer's own definition, not in its name.
"""

import json
import re
from functools import cached_property

from tokenizers import Tokenizer

from specdec.utils.errors import SpecdecError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# A byte that is no UTF-8 decodes to one of these (error handler "surrogateescape").
_STRAY = "\udc80-\udcff"


class ByteTokenizer:
    """A tokenizer seen as an encoding of bytes, cut to the `logit_size` ids that its model knows.

    Everything is computed when first asked for.
    """

    def __init__(self, tokenizer, logit_size: int | None = None) -> None:
        self.tokenizer = tokenizer
        self._logit_size = logit_size
        self.bos: int | None = tokenizer.bos_token_id
        self.eos: int | None = tokenizer.eos_token_id

    @cached_property
    def definition(self) -> dict:
        """The tokenizer's own definition, as in a tokenizer.json."""
        return json.loads(self._backend.to_str())

    @cached_property
    def spelling(self) -> dict[int, str]:
        """Token id to token, as the vocabulary writes it, added tokens included."""
        return {i: token for token, i in self.tokenizer.get_vocab().items()}

    @cached_property
    def size(self) -> int:
        """Number of ids, those without a token included; fewer where the model has fewer."""
        size = number_of_ids(self.tokenizer)
        return size if self._logit_size is None else min(size, self._logit_size)

    @cached_property
    def special(self) -> dict[int, str]:
        """Id to content of the special tokens."""
        ids = {entry["id"] for entry in self.definition["added_tokens"] if entry["special"]}
        ids.update(self.tokenizer.all_special_ids)
        return {i: self.spelling[i] for i in sorted(ids) if i in self.spelling and i < self.size}

    @cached_property
    def bytes(self) -> list[bytes | None]:
        """The bytes of every id; None where it stands for no text (special and unused ids).

        Raises:
            SpecdecError: for a tokenizer that is neither byte-level nor sentencepiece-style.
        """
        added = {entry["id"]: entry["content"] for entry in self.definition["added_tokens"]}
        table: list[bytes | None] = [None] * self.size
        for i, token in self.spelling.items():
            if i in self.special or i >= self.size:
                continue
            if self._is_byte_level:
                # An added token is matched in the text itself, so its content is no byte spelling.
                spelled = token.encode() if i in added else _byte_level_bytes(token)
            else:
                spelled = _sentencepiece_bytes(token, self.definition["model"])
            table[i] = spelled or None
        return table

    @cached_property
    def id_of(self) -> dict[bytes, int]:
        """Bytes to the token that spells them.

        Of several (Llama-2 has 96 byte strings twice: a byte token and a learned one) it is the one
        that the tokenizer itself would write.
        """
        ids_of: dict[bytes, list[int]] = {}
        for i, spelled in enumerate(self.bytes):
            if spelled is not None:
                ids_of.setdefault(spelled, []).append(i)
        return {spelled: self._written(spelled, ids) for spelled, ids in ids_of.items()}

    @cached_property
    def opens_with_space(self) -> bool:
        """Whether a text gets a space at its beginning that decoding takes away again."""
        ids = self._backend.encode("x", add_special_tokens=False).ids
        spelled = b"".join(self.bytes[i] or b"" for i in ids)
        return spelled.startswith(b" ") and not self._backend.decode(ids).startswith(" ")

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer begins every text with its begin-of-text token."""
        return self.bos is not None and self.tokenizer.encode("")[:1] == [self.bos]

    def encode(self, data: bytes) -> list[tuple[int, int]]:
        """Tokens for `data`, as `(id, end)`: token `id` covers the bytes up to `end`.

        The tokens spell the bytes exactly: no special token, no space added, no normal form. Bytes
        that are no UTF-8 (part of a character) become the longest tokens that spell them. What no
        token can spell is left out, which the ends show.
        """
        pieces, start = [], 0
        for n, run in enumerate(self._stray.split(data.decode("utf-8", "surrogateescape"))):
            raw = run.encode("utf-8", "surrogateescape")
            is_text = n % 2 == 0  # `split` gives the separators in the odd places
            pieces += [
                (i, start + end) for i, end in self._encode_run(raw, run if is_text else None)
            ]
            start += len(raw)
        return pieces

    def special_ids_in(self, other: "ByteTokenizer") -> dict[int, int]:
        """Special tokens of this tokenizer to tokens of the other: by content, else by role."""
        id_of = {content: i for i, content in other.special.items()}
        roles = {self.bos: other.bos, self.eos: other.eos}
        ids = {i: id_of.get(content, roles.get(i)) for i, content in self.special.items()}
        return {i: j for i, j in ids.items() if j is not None}

    @property
    def _backend(self) -> Tokenizer:
        if not getattr(self.tokenizer, "is_fast", False):
            raise SpecdecError(
                f"the tokenizer {self._name} has no fast version, whose definition says what its "
                "tokens are; save one beside the model (tokenizer.json)"
            )
        return self.tokenizer.backend_tokenizer

    @property
    def _name(self) -> str:
        return self.tokenizer.name_or_path or type(self.tokenizer).__name__

    @cached_property
    def _is_byte_level(self) -> bool:
        parts = [self.definition[key] for key in ("normalizer", "pre_tokenizer", "decoder")]
        nodes = [node for part in parts for node in _nodes(part)]
        if any(node["type"] == "ByteLevel" for node in nodes):
            return True
        if any(node["type"] == "Metaspace" or _is_about_space(node) for node in nodes):
            return False
        raise SpecdecError(
            f"the tokenizer {self._name} is neither byte-level nor sentencepiece-style (it has "
            f"{sorted({node['type'] for node in nodes})}): what its tokens are is not known; pair "
            "its model with one of the same vocabulary"
        )

    @cached_property
    def _stray(self) -> re.Pattern:
        """Splits off what the encoder must not see; a literal ▁ would turn into a space."""
        return re.compile(f"([{_STRAY}]+)" if self._is_byte_level else f"([▁{_STRAY}]+)")

    @cached_property
    def _encoder(self) -> Tokenizer:
        """The tokenizer without what changes a text: normal forms, a space before it, specials."""
        definition = json.loads(self._backend.to_str())
        definition.update(post_processor=None, truncation=None, padding=None)
        steps = _nodes(definition["normalizer"])
        kept = [n for n in steps if n["type"] == "ByteLevel" or n.get("content") == "▁"]
        definition["normalizer"] = {"type": "Sequence", "normalizers": kept} if kept else None
        for node in _nodes(definition["pre_tokenizer"]):
            if node["type"] == "ByteLevel":
                node["add_prefix_space"] = False
            elif node["type"] == "Metaspace":
                node["prepend_scheme"] = "never"
        for entry in definition["added_tokens"]:
            entry["special"] = entry["id"] in self.special
        encoder = Tokenizer.from_str(json.dumps(definition))
        encoder.encode_special_tokens = True  # text that spells a special token stays text
        return encoder

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.id_of))

    def _written(self, spelled: bytes, ids: list[int]) -> int:
        """Which of the `ids` that mean `spelled` the tokenizer writes."""
        if len(ids) > 1 and not self._stray.search(
            text := spelled.decode("utf-8", "surrogateescape")
        ):
            encoded = self._encoder.encode(text, add_special_tokens=False).ids
            if len(encoded) == 1 and encoded[0] in ids:
                return encoded[0]
        return ids[0]

    def _encode_run(self, raw: bytes, text: str | None) -> list[tuple[int, int]]:
        """`encode` for bytes that are all text, or (None) all no text."""
        if text is not None:
            pieces, end = [], 0
            for i in self._encoder.encode(text, add_special_tokens=False).ids:
                end += len(self.bytes[i] or b"")
                pieces.append((i, end))
            if b"".join(self.bytes[i] or b"" for i, _ in pieces) == raw:
                return pieces
        return self._spell(raw)

    def _spell(self, raw: bytes) -> list[tuple[int, int]]:
        """The longest token from the left, again and again; skips bytes that none begins with."""
        pieces, start = [], 0
        while start < len(raw):
            for end in range(min(len(raw), start + self._longest), start, -1):
                if (i := self.id_of.get(raw[start:end])) is not None:
                    pieces.append((i, end))
                    break
            start = end  # that of the first byte, where no token was found
        return pieces


def number_of_ids(tokenizer) -> int:
    """The highest id + 1: what a model's logits are cut to.

    `len(tokenizer)` counts entries, so where ids were left out (a gap before the added tokens) it
    would cut the last ones off: often the end token.
    """
    return max(tokenizer.get_vocab().values()) + 1


def token_bytes(tokenizer) -> list[bytes | None]:
    """The bytes of every id of a tokenizer; None for special and unused ids.

    Raises:
        SpecdecError: for a tokenizer that is not fast, or of neither family.
    """
    return ByteTokenizer(tokenizer).bytes


def _nodes(part: dict | None) -> list[dict]:
    """A normalizer, pre-tokenizer or decoder as a flat list of its steps."""
    if part is None:
        return []
    steps = [step for value in part.values() if isinstance(value, list) for step in value]
    return [node for step in steps for node in _nodes(step)] if steps else [part]


def _is_about_space(node: dict) -> bool:
    return any(value in ("▁", {"String": "▁"}) for value in node.values())


def _byte_characters() -> dict[str, int]:
    """The character of every byte in a byte-level vocabulary (Radford et al. 2019, `encoder.py`).

    Printable bytes stand for themselves, the others for the characters from 256 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    return characters | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_characters()


def _byte_level_bytes(token: str) -> bytes:
    if all(character in _BYTE_OF for character in token):
        return bytes(_BYTE_OF[character] for character in token)
    return token.encode()


def _sentencepiece_bytes(token: str, model: dict) -> bytes:
    if model.get("byte_fallback") and (match := _BYTE_TOKEN.fullmatch(token)):
        return bytes([int(match[1], 16)])
    return token.replace("▁", " ").encode()

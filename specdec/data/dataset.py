"""A prompt, the file that holds a study's prompts, and a prompt's way to token ids."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specdec.data.records import check_unicode
from specdec.utils.errors import SpecdecError
from specdec.utils.files import atomic_write

CHAT_MODES = ("auto", "none")


@dataclass(frozen=True)
class Prompt:
    """One prompt; `token_count` is its length once encoded for the target, template included."""

    prompt_id: str
    domain: str
    text: str
    token_count: int


class PromptDataset:
    """Prompts in the order of their domains, and the data card that says how they were chosen."""

    def __init__(self, prompts: Iterable[Prompt], card: dict[str, Any] | None = None):
        self.prompts = list(prompts)
        self.card = card or {}

    def __len__(self) -> int:
        return len(self.prompts)

    def get_all(self) -> list[Prompt]:
        return list(self.prompts)

    def get_by_domain(self, domain: str) -> list[Prompt]:
        """The prompts of a domain, in their seeded order. Raises SpecdecError if there are none."""
        found = [prompt for prompt in self.prompts if prompt.domain == domain]
        if not found:
            domains = ", ".join(dict.fromkeys(prompt.domain for prompt in self.prompts))
            raise SpecdecError(f"no prompts of domain {domain!r}; there are: {domains or 'none'}")
        return found

    def source(self, domain: str) -> str:
        """Where the prompts of a domain came from, in a few words for records and figures."""
        try:
            return self.card["domains"][domain]["source"]["label"]
        except KeyError:
            return "unknown"

    def save(self, path: str | Path) -> None:
        """Write the file whole or not at all; the same prompts give the same bytes."""
        content = {"card": self.card, "prompts": [asdict(prompt) for prompt in self.prompts]}
        with atomic_write(path) as file:
            json.dump(content, file, indent=2, ensure_ascii=False)
            file.write("\n")

    @classmethod
    def load(cls, path: str | Path) -> "PromptDataset":
        """Read what `save` wrote. Raises SpecdecError for anything else, naming file and prompt."""
        rebuild = "build the prompt file again"
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise SpecdecError(f"{path} can't be read ({error.strerror}): {rebuild}") from error
        except ValueError as error:
            raise SpecdecError(f"{path} is no JSON ({error}): {rebuild}") from error
        if not isinstance(content, dict) or not content.get("prompts"):
            raise SpecdecError(f"{path} holds no prompts: {rebuild}")
        prompts = []
        for number, fields in enumerate(content["prompts"], 1):
            try:
                prompts.append(Prompt(**fields))
            except TypeError as error:
                raise SpecdecError(f"{path}, prompt {number}: {error}: {rebuild}") from error
            check_unicode(prompts[-1].text, f"{path}, prompt {number}")
        dataset = cls(prompts, content.get("card"))
        if dataset.card.get("digest", digest(prompts)) != digest(prompts):
            raise SpecdecError(f"{path} was changed after it was built: {rebuild}")
        return dataset


def encode_prompt(
    tokenizer: Any, prompt: str | list[dict[str, str]], chat: str = "auto"
) -> list[int]:
    """Token ids of a prompt: as a user's message if the tokenizer has a chat template, else plain.

    `prompt` may be the messages of a chat so far (`role` and `content`): these need the template.
    `chat="none"` leaves the template out. Never begins with two begin-of-text tokens, which a
    template and the tokenizer, or a text and the tokenizer, would give together.
    """
    if chat not in CHAT_MODES:
        raise SpecdecError(f"chat: {chat!r} is not one of {', '.join(CHAT_MODES)}")
    if isinstance(prompt, str):
        check_unicode(prompt, "the prompt")
    if chat == "auto" and tokenizer.chat_template:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    elif isinstance(prompt, str):
        ids = tokenizer(prompt, verbose=False).input_ids
    else:
        raise SpecdecError("the messages of a chat need a tokenizer with a chat template")
    bos = tokenizer.bos_token_id
    while bos is not None and ids[:2] == [bos, bos]:
        ids = ids[1:]
    return list(ids)


def digest(prompts: Iterable[Prompt]) -> str:
    """16 hex digits over ids and texts: equal where the same texts were chosen."""
    pairs = [[prompt.prompt_id, prompt.text] for prompt in prompts]
    content = json.dumps(pairs, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()[:16]

"""What stands in for a tokenizer where a model of random weights has none."""

from types import SimpleNamespace


class TextAsBytes:
    """A token for each byte of a text: any ids do where weights are random, of the right number.

    No text comes back: what random weights emit means nothing.
    """

    chat_template = None
    bos_token_id = None

    def __call__(self, text: str, **settings) -> SimpleNamespace:
        return SimpleNamespace(input_ids=list(text.encode()))

    def decode(self, ids: list[int], **settings) -> str:
        return ""

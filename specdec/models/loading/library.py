"""transformers, called quietly, with what it raises explained in one line."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import transformers
from safetensors import SafetensorError

from specdec.utils.errors import SpecdecError, is_out_of_memory, one_line


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the progress bars and advice of the libraries out of a command's output."""
    talk = transformers.utils.logging
    verbosity, bars = talk.get_verbosity(), talk.is_progress_bar_enabled()
    talk.set_verbosity_error()
    talk.disable_progress_bar()
    # On a CPU it advises, at its first import, to install a package of faster kernels.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        talk.set_verbosity(verbosity)
        if bars:
            talk.enable_progress_bar()


@contextmanager
def explained(model_id: str) -> Iterator[None]:
    """Turn what `from_pretrained` raises about a model into one line that names the model."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        message = one_line(error)
        if "trust_remote_code" in message:
            message = "it brings Python code; to let it run, set trust_remote_code: true for it"
        raise SpecdecError(f"{model_id}: cannot be loaded: {message}") from error

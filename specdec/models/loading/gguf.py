"""A GGUF file as folders that transformers reads: converted once, then kept in the cache.

transformers reads such a file value by value, which takes half a minute for a small model, and a
study reads its models once for every cell. Whatever the file holds, what is kept is what
transformers makes of it: its configuration, tokenizer and chat template in one folder, its weights,
dequantised to one dtype, in another for each dtype. In what form the file holds them is kept too.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from specdec.models.loading.completeness import check_complete
from specdec.models.loading.library import quiet
from specdec.utils.cache import cache_folder
from specdec.utils.digest import model_digest
from specdec.utils.errors import SpecdecError, is_out_of_memory, one_line
from specdec.utils.files import exclusive_lock
from specdec.utils.logging import get_logger

log = get_logger("loader")


def configuration_folder(file: str) -> str:
    """The folder of a GGUF file's configuration, tokenizer and chat template.

    Raises:
        SpecdecError: for a file that transformers can't read, or without the packages that it needs
            for that.
    """

    def convert(folder: Path) -> None:
        place = _place(file)
        AutoConfig.from_pretrained(**place).save_pretrained(folder)
        AutoTokenizer.from_pretrained(**place).save_pretrained(folder)

    return _kept(file, "configuration", convert)


def weights_folder(file: str, dtype: torch.dtype) -> str:
    """The folder of a GGUF file's weights, dequantised to a dtype, with their configuration.

    Raises:
        SpecdecError: as `configuration_folder`, and for tensors that the file lacks.
    """

    def convert(folder: Path) -> None:
        options = {"dtype": dtype, "output_loading_info": True}
        # Since 5.23 weights may stay packed where a kernel for them is published.
        if hasattr(transformers, "GgufConfig"):
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
        model, report = AutoModelForCausalLM.from_pretrained(**_place(file), **options)
        check_complete(file, report)
        model.save_pretrained(folder)

    return _kept(file, str(dtype).removeprefix("torch."), convert)


def stored_form(file: str) -> str:
    """In what form a GGUF file holds most of its weights: "Q4_1", "F16", ….

    Raises:
        SpecdecError: as `configuration_folder`.
    """

    def convert(folder: Path) -> None:
        from gguf import GGUFReader

        weights: Counter[str] = Counter()
        for tensor in GGUFReader(file).tensors:
            weights[tensor.tensor_type.name] += int(tensor.n_elements)
        folder.mkdir()
        (folder / "form").write_text(weights.most_common(1)[0][0])

    return Path(_kept(file, "form", convert), "form").read_text()


def _place(file: str) -> dict[str, str]:
    folder, name = os.path.split(file)
    return {"pretrained_model_name_or_path": folder, "gguf_file": name}


def _kept(file: str, part: str, convert: Callable[[Path], None]) -> str:
    """A folder of the cache that `convert` filled, now or for somebody else."""
    name = f"{Path(file).stem}-{model_digest(file)}-{transformers.__version__}"
    folder = cache_folder() / "gguf" / name / part
    waiting = lambda: log.info("waiting for another process to convert %s", file)  # noqa: E731
    with exclusive_lock(folder.with_name(f"{part}.lock"), waiting):
        if not folder.exists():
            _check_packages(file)
            log.info("converting %s: %s (once)", file, part)
            unfinished = folder.with_name(f"{part}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
            # The reader's progress bar is no part of transformers' own, which `quiet` turns off.
            with quiet(), redirect_stderr(StringIO()), _explained(file):
                convert(unfinished)
            unfinished.rename(folder)
    return str(folder)


def _check_packages(file: str) -> None:
    missing = [name for name in ("gguf", "accelerate") if not importlib.util.find_spec(name)]
    if missing:
        raise SpecdecError(
            f"{file}: reading a GGUF file needs {' and '.join(missing)}; run `pip install "
            f"{' '.join(missing)}`"
        )


@contextmanager
def _explained(file: str) -> Iterator[None]:
    """One line for a file that can't be read: its reader raises whatever the bytes lead to."""
    try:
        yield
    except Exception as error:
        if isinstance(error, SpecdecError) or is_out_of_memory(error):
            raise
        raise SpecdecError(
            f"{file}: transformers {transformers.__version__} cannot read this GGUF file "
            f"({type(error).__name__}: {one_line(error)[:200]}); convert it to a folder of "
            "safetensors, or take another file"
        ) from error

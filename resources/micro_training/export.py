"""Writing a model as an ordinary Hugging Face folder."""

import copy
import os
import shutil
from pathlib import Path

import torch


def rounded(model):
    """A copy whose weights are rounded to bfloat16, as they are shipped, in the original dtype."""
    return copy.deepcopy(model).to(torch.bfloat16).to(model.dtype).eval()


def export(model, tokenizer, folder: Path) -> None:
    """Save model (bfloat16) and tokenizer; the old folder stays until the new one is complete."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    copy.deepcopy(model).to("cpu", torch.bfloat16).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)


def size_mb(folder: Path) -> float:
    """Size of all files in a folder, in MB (10^6 bytes)."""
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6, 2)

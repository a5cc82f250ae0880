"""The kernels under their former names: see `specdec.kernels`."""

import torch

from specdec.kernels import formats
from specdec.kernels.build import load_operators as build_operators
from specdec.kernels.formats import SHORT_WEIGHT
from specdec.kernels.graft import graft as narrow_operators
from specdec.models.loading.memory_check import available_bytes

__all__ = ["SHORT_WEIGHT", "build_operators", "lay_out_weights", "narrow_operators"]


def lay_out_weights(model: torch.nn.Module) -> None:
    formats.lay_out_weights(model, available_bytes(torch.device("cpu")))

"""Training through 4-bit rounding: the target then loses next to nothing as its own 4-bit draft."""

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D


class NormalFloat4(torch.nn.Module):
    """A matrix as it comes back from NF4 with double quantisation; gradients pass through it.

    The straight-through estimator of Bengio et al. 2013, arXiv 1308.3432. 64 weights share a
    scale, counted along the inputs, as `bitsandbytes` lays a `Conv1D` [in, out] out.
    """

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        turned = weight.detach().T.contiguous()  # [out, in]
        rounded = dequantize_4bit(
            *quantize_4bit(turned, blocksize=64, compress_statistics=True, quant_type="nf4")
        )
        return weight + (rounded.T.to(weight.dtype) - weight).detach()


def round_in_passes(model) -> None:
    """From now on every pass of `model` uses its blocks' matrices rounded to NF4."""
    for module in model.transformer.h.modules():
        if isinstance(module, Conv1D):
            parametrize.register_parametrization(module, "weight", NormalFloat4())


@torch.no_grad()
def as_rounded(model):
    """A plain model that holds what such a model rounds to."""
    plain = type(model)(model.config).to(model.device)
    state = model.state_dict()
    plain.load_state_dict(
        {name.replace("parametrizations.weight.original", "weight"): state[name] for name in state}
    )
    for module in plain.transformer.h.modules():
        if isinstance(module, Conv1D):
            module.weight.copy_(NormalFloat4()(module.weight))
    return plain.eval()

"""Weights that a 4-bit self of a model has in common with it."""

from __future__ import annotations

import torch

from specdec.utils.logging import get_logger

log = get_logger(__name__)


def share_weights(draft: torch.nn.Module, target: torch.nn.Module, random: bool = False) -> bool:
    """Have a 4-bit draft use its target's tensors for what is not quantised (embedding, output
    head, norms, biases), in the target's dtype: they are held once, and read in as few bytes.

    Only where all of them are the same numbers, or are `random` ones, which may as well be;
    whether they are is returned.
    """
    theirs = dict(target.named_parameters())
    own = [(name, part) for name, part in draft.named_parameters() if not _in_4_bits(part)]
    same = all(
        name in theirs
        and theirs[name].shape == part.shape
        and theirs[name].device == part.device
        and (random or torch.equal(part.to(theirs[name].dtype), theirs[name]))
        for name, part in own
    )
    if not same:
        return False
    freed = sum(part.nbytes for _, part in own)
    for name, part in own:
        part.data = theirs[name].data
    dtypes = sorted({str(theirs[name].dtype).removeprefix("torch.") for name, _ in own})
    log.info(
        "int4 draft: what is not quantised is the target's own, in %s; %.0f MB of copies freed",
        " and ".join(dtypes),
        freed / 1e6,
    )
    return True


def _in_4_bits(weight: torch.nn.Parameter) -> bool:
    return getattr(weight, "quant_state", None) is not None

"""Whether a checkpoint held what its configuration asks for: all tensors, of the right shapes."""

from collections.abc import Iterable
from typing import Any

from specdec.utils.errors import SpecdecError
from specdec.utils.logging import get_logger

NAMED = 4  # how many tensors a message names

log = get_logger("loader")


def check_complete(model_id: str, report: dict[str, Any]) -> None:
    """Raise SpecdecError unless every weight of a model came from its checkpoint.

    transformers fills what is missing with random weights: a target then babbles, and a draft that
    is accepted by chance looks as if speculation didn't pay. Tensors that no weight of the model
    takes are said in the log.

    Args:
        model_id: what to call the model.
        report: what `from_pretrained` gives with `output_loading_info=True` (and, so that it
            reports shapes rather than raise, `ignore_mismatched_sizes=True`).
    """
    reshaped = sorted(report["mismatched_keys"])
    if reshaped:
        shapes = [
            f"{name} is {list(stored)} in the file, {list(wanted)} by config.json"
            for name, stored, wanted in reshaped
        ]
        raise SpecdecError(
            f"{model_id}: {_listed(shapes, '; ')}: the checkpoint and its config.json do not "
            "belong together; take both from one source"
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise SpecdecError(
            f"{model_id}: the checkpoint lacks {len(missing)} tensors of the model: "
            f"{_listed(missing)}; download or save it again"
        )
    unexpected = sorted(report["unexpected_keys"])
    if unexpected:
        log.warning(
            "%s: %d tensors of the checkpoint are no part of the model and were left out: %s",
            model_id,
            len(unexpected),
            _listed(unexpected),
        )


def _listed(names: Iterable[str], separator: str = ", ") -> str:
    names = list(names)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return separator.join(names[:NAMED]) + more

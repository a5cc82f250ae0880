"""Lossless speculative decoding, and the instruments to study it.

`specdec.load_pair("micro")` gives the wrappers of a registered pair, draft and target.
"""

__version__ = "0.1.0"


def __getattr__(name: str):
    # Late, so that whoever needs a digest or a schema (the workflow, at each start) loads no torch.
    if name == "load_pair":
        from specdec.models.pair import load_pair

        return load_pair
    raise AttributeError(f"module 'specdec' has no attribute '{name}'")

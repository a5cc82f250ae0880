"""Lossless speculative decoding, and the instruments to study it.

`specdec.load_pair("micro")` gives a registered pair ready for use, which unpacks into the wrappers
of its draft and its target.
"""

from importlib import import_module

__version__ = "0.1.0"


def __getattr__(name: str):
    # Late, so that whoever needs a digest or a schema (the workflow, at each start) loads no torch;
    # and by name, so that not every module's digest holds the loader's.
    if name == "load_pair":
        return import_module("specdec.decoding.loaded_pair").load_pair
    raise AttributeError(f"module 'specdec' has no attribute '{name}'")

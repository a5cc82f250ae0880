"""Names that others rely on keep working, whatever moved behind them (docs/stability.md)."""

import importlib

import pytest

NAMES = {
    "specdec": ["load_pair"],
    "specdec.decoding.autoregressive": ["AutoregressiveDecoder"],
    "specdec.decoding.speculative": ["SpeculativeDecoder"],
    "specdec.decoding.rejection": ["accepted_count", "next_distribution", "reject", "match"],
    "specdec.models.loader": ["load_model", "main"],
    "specdec.models.registry": ["get_pair", "list_pairs"],
    "specdec.models.wrapper": ["ModelWrapper"],
    "specdec.models.ollama_loader": ["main"],
    "specdec.data.prompts": ["PromptDataset", "main"],
    "specdec.profiling.metrics": ["GenerationResult", "BenchmarkConfig"],
    "specdec.profiling.timer": ["CUDATimer", "CUDATimerCollection", "cuda_sync_time"],
    "specdec.utils.errors": ["SpecdecError"],
    "specdec.commands.generate": ["TextStream"],
}


@pytest.mark.parametrize("module", NAMES)
def test_a_public_name_is_where_it_was(module):
    there = importlib.import_module(module)
    assert [name for name in NAMES[module] if not hasattr(there, name)] == []

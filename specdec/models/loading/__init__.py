"""From an entry of the registry to a model in memory: where it lies, its sizes, its weights."""

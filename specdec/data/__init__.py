"""Prompts: where they come from, which are chosen, how they are encoded."""

"""The commands of `python -m specdec`."""

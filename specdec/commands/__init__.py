"""The commands of `specdec`."""

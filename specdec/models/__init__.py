"""Models: which pairs there are, how they are loaded, and how they are run and rolled back."""

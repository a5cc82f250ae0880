"""How passes get fast: compiled once a model, over caches that keep their place."""

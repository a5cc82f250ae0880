"""A study: its configuration, its decode jobs, and what bounds their acceptance."""

"""Configs: one module per experiment. `common` has all keys and their defaults."""

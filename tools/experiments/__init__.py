"""Experiments: studies behind docs/STUDY.md, and measurements of the code itself."""

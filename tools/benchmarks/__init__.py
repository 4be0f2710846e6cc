"""Benchmarks: commands that time the programs of functa."""

"""Evaluation of fields and generators: metrics, features, baselines, measurements of a trained field.

Functions take objects and arrays. `functa.pipeline` loads runs, `functa.report` draws the results.
"""

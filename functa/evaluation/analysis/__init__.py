"""Measurements of a trained field: fitting, storage size, resolution, and the space of latents.

A measurement is a function of a `trained_field.TrainedField` and returns `table.Table`s by name. The
command `functa analyse` loads the field and prints the tables.
"""

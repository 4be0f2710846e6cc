"""Services below all mathematics: devices, processes, preemption, storage, configs and errors.

Nothing here knows of fields, models or data sets.
"""

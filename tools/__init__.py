"""Trains the small networks that ship inside the package: `python -m tools sam|base|generator|judge`.

Every trainer is seeded, writes a checkpoint every few minutes, resumes from it when started again, appends its losses to
a JSON-lines log, and leaves a card (command, seed, data, steps, hours, metrics) beside the weights.
"""

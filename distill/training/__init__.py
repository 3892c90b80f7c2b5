"""The loop, what learns in it, and what survives it: learner, checkpoints, log, run folder, devices.

May import conformance, data, sampling, models and what stands below them. Of objectives it knows nothing.
"""

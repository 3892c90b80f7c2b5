"""The training loop and its parts: learners, checkpoints, log, run folder and devices.

May import conformance, data, sampling, models and what stands below them. It does not depend on objectives.
"""

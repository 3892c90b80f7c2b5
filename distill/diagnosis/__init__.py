"""Diagnosis of models along depth and timestep: images, measurements, summaries, and results as JSON.

May import dar, data, sampling, conditions, seeds and errors.
"""

"""Models along depth and timestep: images, measuring, summaries, results as JSON.

May import dar, data, sampling, conditions, seeds and errors.
"""

"""Drawing and measuring samplers, and gathering what the page shows of them.

May import report, sampling, metrics, latents and what stands below them.
"""

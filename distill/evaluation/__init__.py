"""Draws and measures samplers, and collects the content of the report page.

May import report, sampling, metrics, latents and what stands below them.
"""

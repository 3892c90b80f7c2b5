"""Latents: autoencoders (of diffusers) and decoders that turn a model's samples into images.

May import errors.
"""

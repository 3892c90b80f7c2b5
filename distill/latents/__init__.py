"""Latents: autoencoders (diffusers' AutoencoderKL) and what decodes a model's samples into images.

May import errors.
"""

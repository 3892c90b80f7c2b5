"""Latents: autoencoders (diffusers' AutoencoderKL) and decoders that turn a model's samples into images.

May import errors.
"""

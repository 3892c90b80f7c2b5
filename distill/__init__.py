"""distill: few-step students of diffusion transformers, and what becomes of their detail."""

__version__ = "0.1.0"

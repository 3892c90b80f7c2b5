"""Free functions of tensors."""

from distill.losses.dmd import dmd_loss
from distill.losses.flow_matching import flow_matching_loss

__all__ = ["dmd_loss", "flow_matching_loss"]

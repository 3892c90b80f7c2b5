"""Whether a model keeps to `Backbone` and follows the one convention (velocity = eps - x0, t = 1 noise).

May import sampling, models, conditions, seeds and errors.
"""

from distill.conformance.check import check_backbone
from distill.conformance.conventions import Convention, convention_of
from distill.conformance.gaussian import GaussianClasses

__all__ = ["Convention", "GaussianClasses", "check_backbone", "convention_of"]

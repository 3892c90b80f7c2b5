"""The page of a diagnosis."""

from distill.report.diagnosis.figures import MODEL_COLOURS
from distill.report.diagnosis.page import JSON, PAGE, write_diagnosis

MAX_MODELS = len(MODEL_COLOURS)

__all__ = ["JSON", "MAX_MODELS", "PAGE", "write_diagnosis"]

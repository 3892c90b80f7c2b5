"""Looking inside a model along depth and timestep. Nothing here changes it or leaves a trace in it."""

from dar.diagnostics.capture import Record, capture, without
from dar.diagnostics.chunking import ChunkProposal, chunk_from_profile, propose_chunks
from dar.diagnostics.depth import AXES, DEPTH_MEASURES, DepthMeasure, Place, depth_measure, measures_of
from dar.diagnostics.measures import cosine_matrix
from dar.diagnostics.probe import ProbeScore, probe_r2
from dar.diagnostics.profile import (
    Pass,
    hidden_features,
    interpolated,
    recorded_pass,
    removal_costs,
    sample_losses,
    source_similarity,
)
from dar.diagnostics.readers import Reader, readers_of
from dar.diagnostics.symptoms import Symptoms, symptoms
from dar.diagnostics.variance import EFFECTS, RunningMarginals, effect_variances, variance_shares
from dar.diagnostics.views import View, view_of, views_of

__all__ = [
    "AXES",
    "DEPTH_MEASURES",
    "EFFECTS",
    "ChunkProposal",
    "DepthMeasure",
    "Pass",
    "Place",
    "ProbeScore",
    "Reader",
    "Record",
    "RunningMarginals",
    "Symptoms",
    "View",
    "capture",
    "chunk_from_profile",
    "cosine_matrix",
    "depth_measure",
    "effect_variances",
    "hidden_features",
    "interpolated",
    "measures_of",
    "probe_r2",
    "propose_chunks",
    "readers_of",
    "recorded_pass",
    "removal_costs",
    "sample_losses",
    "source_similarity",
    "symptoms",
    "variance_shares",
    "view_of",
    "views_of",
    "without",
]

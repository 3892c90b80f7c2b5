"""Chunks of any length, the rule for their size, and boundaries from measured similarity."""

import itertools

import numpy as np
import pytest
import torch

from dar import RoutingConfig, SiT
from dar.chunks import ChunkPlan, PartialSumPlan, best_chunk_size, chunk_size_rule, reader_blocks, scatter_of, segment
from dar.diagnostics.chunking import chunk_from_profile, propose_chunks
from tests.conftest import perturbed, tiny_config


def spelled(plan: ChunkPlan) -> list[str]:
    return [
        " ".join(f"{kind[0]}{index}" for kind, index in plan.sources_of(reader))
        for reader in range(1, plan.num_sublayers + 2)
    ]


def test_chunks_of_uneven_length_by_hand():
    plan = ChunkPlan.of(6, (1, 3, 2))
    assert spelled(plan) == ["c0", "c0 c1", "c0 c1 r2", "c0 c1 r2 r3", "c0 c1 c2", "c0 c1 c2 r5", "c0 c1 c2 r5 r6"]
    assert [plan.chunk_of(i) for i in range(1, 7)] == [1, 2, 2, 2, 3, 3]
    assert [plan.end_of_chunk(i) for i in range(1, 7)] == [1, 4, 4, 4, 6, 6]


def test_partial_sums_by_hand():
    assert spelled(PartialSumPlan.of(5, 2)) == ["c0", "c0 p1", "c0 c1", "c0 c1 p3", "c0 c1 c2", "c0 c1 c2 p5"]


def test_uniform_chunks_as_a_list():
    assert ChunkPlan.of(10, 4) == ChunkPlan.of(10, (4, 4, 2))
    assert ChunkPlan.of(8, 4) == ChunkPlan.of(8, (4, 4))
    assert ChunkPlan.of(56, "auto") == ChunkPlan.of(56, 4)


@pytest.mark.parametrize(
    ("lengths", "num_readers", "sizes"),
    [
        ([1] * 8, 9, [4, 4, 1]),
        ([4, 4], 9, [4, 4, 1]),
        ([2, 2, 2], 7, [4, 3]),
        ([3, 3], 7, [3, 4]),
        ([6, 1, 1], 9, [4, 2, 3]),
        ([1, 9], 10, [1, 4, 4, 1]),
        ([2], 2, [2]),
    ],
)
def test_blocks_of_readers_hold_whole_chunks_where_they_can(lengths, num_readers, sizes):
    blocks = reader_blocks(lengths, num_readers, width=4)
    assert [len(block) for block in blocks] == sizes
    assert [reader for block in blocks for reader in block] == list(range(1, num_readers + 1))


def test_the_rule_of_the_paper():
    """L = 56 gives 3.7 to 4.9 for a in [0.4, 0.6]."""
    assert [best_chunk_size(56, a) for a in (0.6, 0.4)] == pytest.approx([3.7, 4.9], abs=0.05)
    assert [chunk_size_rule(56, a) for a in (0.4, 0.5, 0.6)] == [5, 4, 4]
    assert chunk_size_rule(48) == 4 and chunk_size_rule(12) == 2
    assert chunk_size_rule(2, 0.99) == 1 and chunk_size_rule(1, 0.0) == 1
    with pytest.raises(ValueError, match=r"similarity must lie in \[0, 1\); got 1"):
        chunk_size_rule(8, 1.0)


def spread(vectors: np.ndarray) -> float:
    return float(((vectors - vectors.mean(0)) ** 2).sum())


def test_segments_are_the_best_of_all():
    """Against every way to cut 7 unit vectors, by their scatter around the mean of their chunk."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(7, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for num_chunks in range(1, 8):
        options = {}
        for cuts in itertools.combinations(range(1, 7), num_chunks - 1):
            edges = [0, *cuts, 7]
            parts = list(itertools.pairwise(edges))
            options[tuple(b - a for a, b in parts)] = sum(spread(vectors[a:b]) for a, b in parts)
        best = segment(vectors @ vectors.T, num_chunks)
        assert best == min(options, key=lambda lengths: options[lengths])
        assert scatter_of(vectors @ vectors.T, best) == pytest.approx(options[best])


def test_segments_find_planted_groups():
    groups = np.repeat([0, 1, 2], [2, 5, 3])
    similarity = np.where(groups[:, None] == groups, 0.9, 0.1) + 0.1 * np.eye(10)
    assert segment(similarity, 3) == (2, 5, 3)


def test_an_impossible_number_of_segments_is_refused():
    for num_chunks in (0, 5):
        with pytest.raises(ValueError, match=rf"num_chunks must lie in \[1, 4\].* got {num_chunks}"):
            segment(np.eye(4), num_chunks)


def test_a_proposal_beside_the_rule():
    """Neighbours' cosines: 0.8 seven times, 0 twice; S* = sqrt(10 * 0.377778 / 1.622222) = 1.5, so chunks of 2."""
    groups = np.repeat([0, 1, 2], [2, 5, 3])
    similarity = np.where(groups[:, None] == groups, 0.8, 0.0) + 0.2 * np.eye(10)
    proposal = propose_chunks(similarity)
    assert proposal.similarity == pytest.approx(7 * 0.8 / 9)
    assert proposal.chunk_size == 2 and proposal.uniform == (2, 2, 2, 2, 2)
    assert len(proposal.lengths) == 5 and sum(proposal.lengths) == 10
    assert proposal.scatter == pytest.approx((10 - 5 - 0.8 * 5) / 10)  # no chunk crosses a group
    assert proposal.scatter < proposal.uniform_scatter
    alone = propose_chunks(np.ones((1, 1)))
    assert (alone.similarity, alone.lengths) == (0.0, (1,))
    assert propose_chunks(np.ones((6, 6))).chunk_size == 1  # all alike


def test_a_proposal_from_a_model_is_a_routing_for_it():
    model = SiT(tiny_config(depth=3, routing=RoutingConfig(kind="residual")))
    perturbed(model, std=0.3)
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(6, *model.sample_shape, generator=generator)
    proposal = chunk_from_profile(model, (x_t, torch.linspace(0.1, 0.9, 6), torch.arange(6) % 3))
    assert -1 <= proposal.similarity <= 1
    assert sum(proposal.lengths) == sum(proposal.uniform) == 6
    SiT(tiny_config(depth=3, routing=RoutingConfig(chunk_size=proposal.lengths)))

"""Who reads what."""

import pytest
import torch

from dar.chunks import ChunkPlan, SourceId
from dar.history import SourceHistory

EVERY_LENGTH = pytest.mark.parametrize("num_sublayers", range(1, 13))


def expected_sources(num_sublayers: int, chunk_size: int, reader: int) -> list[tuple[str, int]]:
    """Equation 7 by walking the stack: outputs pile up; a full pile becomes a summary."""
    summaries, pile = [("chunk", 0)], []
    for written in range(1, reader):
        # The pile is folded away only in front of a sublayer that opens a new chunk, never before the head.
        if len(pile) == chunk_size:
            summaries.append(("chunk", len(summaries)))
            pile = []
        pile.append(("raw", written))
    if len(pile) == chunk_size and reader <= num_sublayers:
        summaries.append(("chunk", len(summaries)))
        pile = []
    return summaries + pile


@EVERY_LENGTH
def test_plan_against_a_walk(num_sublayers):
    for chunk_size in range(1, num_sublayers + 1):
        plan = ChunkPlan.of(num_sublayers, chunk_size)
        for reader in range(1, num_sublayers + 2):
            assert plan.sources_of(reader) == expected_sources(num_sublayers, chunk_size, reader), chunk_size


def test_plan_by_hand():
    """L = 5, S = 2: chunks {1, 2}, {3, 4}, {5}."""
    plan = ChunkPlan.of(5, 2)
    spelled = [[f"{kind[0]}{index}" for kind, index in plan.sources_of(reader)] for reader in range(1, 7)]
    assert spelled == [
        ["c0"],
        ["c0", "r1"],
        ["c0", "c1"],
        ["c0", "c1", "r3"],
        ["c0", "c1", "c2"],
        ["c0", "c1", "c2", "r5"],
    ]
    assert [plan.chunk_of(i) for i in range(1, 6)] == [1, 1, 2, 2, 3]
    assert [plan.end_of_chunk(i) for i in range(1, 6)] == [2, 2, 4, 4, 5]


def test_dense_plan_reads_everything():
    assert [len(ChunkPlan.of(8, 1).sources_of(reader)) for reader in range(1, 10)] == list(range(1, 10))


SUMMARISE = {
    "last": lambda outputs: outputs[-1],
    "sum": lambda outputs: torch.stack(outputs).sum(0),
    "mean": lambda outputs: torch.stack(outputs).mean(0),
}


@pytest.mark.parametrize("summary", SUMMARISE)
@EVERY_LENGTH
def test_history_hands_out_the_plan(num_sublayers, summary):
    for chunk_size in range(1, num_sublayers + 1):
        check_history(num_sublayers, chunk_size, summary)


def check_history(num_sublayers: int, chunk_size: int, summary: str) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = [torch.randn(1, 2, 3, generator=generator, dtype=torch.float64) for _ in range(num_sublayers + 1)]
    plan = ChunkPlan.of(num_sublayers, chunk_size)
    history = SourceHistory(plan, summary, outputs[0])
    for reader in range(1, num_sublayers + 2):
        assert history.previous is outputs[reader - 1]
        sources, planned = history.sources(), plan.sources_of(reader)
        assert len(sources) == len(planned)
        for source, (kind, index) in zip(sources, planned, strict=True):
            assert reader in source.readers
            if (kind, index) == ("chunk", 0) or kind == "raw":
                assert source.value is outputs[index if kind == "raw" else 0]
            else:
                members = outputs[(index - 1) * chunk_size + 1 : index * chunk_size + 1]
                torch.testing.assert_close(source.value, SUMMARISE[summary](members))
            inv_rms = source.value.square().mean(-1).add(1e-6).rsqrt()
            torch.testing.assert_close(source.inv_rms, inv_rms)
        if reader <= num_sublayers:
            history.append(outputs[reader])


@EVERY_LENGTH
def test_a_source_announces_exactly_its_readers(num_sublayers):
    """Queries are scored for `readers` ahead of time; one too few is an error, one too many is waste."""
    for chunk_size in range(1, num_sublayers + 1):
        check_readers(num_sublayers, chunk_size)


def check_readers(num_sublayers: int, chunk_size: int) -> None:
    plan = ChunkPlan.of(num_sublayers, chunk_size)
    history = SourceHistory(plan, "sum", torch.zeros(1, 1, 4))
    announced: dict[SourceId, range] = {}
    for reader in range(1, num_sublayers + 2):
        for identity, source in zip(plan.sources_of(reader), history.sources(), strict=True):
            announced[identity] = source.readers
        if reader <= num_sublayers:
            history.append(torch.ones(1, 1, 4))
    for identity, readers in announced.items():
        actual = [reader for reader in range(1, num_sublayers + 2) if identity in plan.sources_of(reader)]
        assert list(readers) == actual, identity


@pytest.mark.parametrize(("summary", "chunk_size"), [("last", 3), ("sum", 1), ("mean", 3)])
def test_sources_are_not_copied(summary, chunk_size):
    outputs = [torch.randn(1, 2, 4) for _ in range(7)]
    history = SourceHistory(ChunkPlan.of(6, chunk_size), summary, outputs[0])
    for output in outputs[1:]:
        history.append(output)
    held = {source.value.data_ptr() for source in history.sources()}
    raw = {"last": [0, 3, 4, 5, 6], "sum": range(7), "mean": [0, 4, 5, 6]}[summary]
    assert {outputs[i].data_ptr() for i in raw} <= held


@pytest.mark.parametrize("chunk_size", [0, -1, 9])
def test_chunk_size_must_fit(chunk_size):
    with pytest.raises(ValueError, match=rf"chunk_size must lie in \[1, 8\], .*got {chunk_size}"):
        ChunkPlan.of(8, chunk_size)

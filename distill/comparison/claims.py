"""Claims of the paper (arXiv:2605.20708), as comparisons that the measured values decide or leave open."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from distill.comparison.config import Job
from distill.comparison.gather import Gathered
from distill.comparison.statistics import Paired, Verdict, all_of, chunk_sizes_of_rule, paired, verdict

QUALITY = ("loss", "loss_raw", "loss_at_time", "frechet")
RECOGNISABLE = 0.5  # class agreement of the first baseline; below it, Fréchet distances compare blurred images
CHUNK_ARM = "static_t"  # other arms differ from this one only in chunk size


@dataclass(frozen=True)
class Claim:
    """Each arm of `better` has a lower value than each arm of `than`, in each quantity."""

    text: str
    better: tuple[str, ...]
    than: tuple[str, ...]
    quantities: tuple[str, ...] = QUALITY


@dataclass(frozen=True)
class Part:
    """One arm against another in one quantity; difference: arm - against by seed, None if either has no values."""

    arm: str
    against: str
    difference: Paired | None
    verdict: Verdict


@dataclass(frozen=True)
class Finding:
    """The verdict on a claim at one size in one quantity. note: why it was not tested."""

    claim: str
    size: str
    quantity: str
    parts: list[Part]
    verdict: Verdict
    note: str = ""


ADAPTIVE = ("static_t", "dynamic")
CLAIMS = (
    Claim("Queries that know the timestep (static_t, dynamic) are better than static ones", ADAPTIVE, ("static",)),
    Claim("DAR is better than the plain residual stream", ADAPTIVE, ("residual",)),
    Claim("DAR is better than U-Net-like skips", ADAPTIVE, ("unet_skip",)),
    Claim("DAR is better than Attention Residuals", ADAPTIVE, ("attnres",)),
    Claim("Not by its parameters: DAR is better than a wider plain model", ADAPTIVE, ("residual_plus",)),
    Claim("DAR keeps the magnitude flat over depth", ADAPTIVE, ("residual",), ("magnitude_departure",)),
    Claim("DAR keeps the gradient flat over depth", ADAPTIVE, ("residual",), ("gradient_departure",)),
    Claim("DAR makes neighbouring blocks less alike", ADAPTIVE, ("residual",), ("redundancy",)),
    Claim("Alignment with an encoder (REPA) makes the plain model better", ("residual_repa",), ("residual",)),
    Claim("Alignment makes DAR better", ("static_t_repa",), ("static_t",)),
    Claim("With alignment, DAR is better than the plain residual stream", ("static_t_repa",), ("residual_repa",)),
)


def judge(gathered: Gathered) -> list[Finding]:
    """Verdicts on every claim at every size, with the chunk size rule last."""
    sizes = gathered.sizes
    findings = [
        finding(gathered, claim, size, best_clock(gathered, quantity))
        for claim in claims_on(gathered.comparison.arms)
        for size in sizes
        for quantity in claim.quantities
    ]
    return findings + [
        chunk_finding(gathered, size, best_clock(gathered, quantity)) for size in sizes for quantity in QUALITY
    ]


def claims_on(arms: Sequence[str]) -> list[Claim]:
    """The claims whose arms are all there."""
    return [claim for claim in CLAIMS if {*claim.better, *claim.than} <= set(arms)]


def best_clock(gathered: Gathered, quantity: str) -> str:
    """For equal time, the side-by-side timing if there is one: recorded seconds may come from a shared machine."""
    return "loss_at_cost" if quantity == "loss_at_time" and gathered.costs else quantity


def finding(gathered: Gathered, claim: Claim, size: str, quantity: str) -> Finding:
    """Compare all pairs of arms of a claim; the claim holds only if every part holds."""
    if quantity == "frechet" and (note := unrecognisable(gathered, size)):
        return Finding(claim.text, size, quantity, [], Verdict.NOT_TESTED, note)
    parts = [part(gathered, size, quantity, arm, against) for arm in claim.better for against in claim.than]
    return Finding(claim.text, size, quantity, parts, all_of([p.verdict for p in parts]))


def unrecognisable(gathered: Gathered, size: str) -> str:
    """Why images of this size cannot be compared yet; empty if they can."""
    values = gathered.by_seed("class_agreement", size, gathered.comparison.config.baselines[0]).values()
    if not values or statistics.mean(values) >= RECOGNISABLE:
        return ""
    return f"images show no classes yet: class agreement {statistics.mean(values):.2f}"


def part(gathered: Gathered, size: str, quantity: str, arm: str, against: str) -> Part:
    difference = paired(gathered.by_seed(quantity, size, arm), gathered.by_seed(quantity, size, against))
    return Part(arm, against, difference, verdict(difference) if difference else Verdict.NOT_TESTED)


def chunk_finding(gathered: Gathered, size: str, quantity: str) -> Finding:
    """Whether the chunk size from the rule is better than the other trained chunk sizes."""
    jobs = [job for job in gathered.comparison.jobs if job.size == size]
    arms = arms_by_chunk_size(jobs)
    low, high = chunk_sizes_of_rule(2 * jobs[0].model.depth)
    wanted = [chunk_size for chunk_size in arms if round(low) <= chunk_size <= round(high)]
    text = f"The best chunk size is that of the rule, S* = sqrt(L (1 - a) / (1 + a)), here {low:.1f} to {high:.1f}"
    note = unrecognisable(gathered, size) if quantity == "frechet" else ""
    if not wanted or len(arms) < 2:
        note = f"trained: S = {', '.join(map(str, sorted(arms))) or 'none'}"
    if note:
        return Finding(text, size, quantity, [], Verdict.NOT_TESTED, note)
    parts = [
        part(gathered, size, quantity, arms[good], arms[other])
        for good in wanted
        for other in arms
        if other not in wanted
    ]
    return Finding(text, size, quantity, parts, all_of([p.verdict for p in parts]))


def arms_by_chunk_size(jobs: Sequence[Job]) -> dict[int, str]:
    """By chunk size, the arms that differ from `CHUNK_ARM` only in chunk size."""
    reference = next((job.model for job in jobs if job.arm == CHUNK_ARM), None)
    found: dict[int, str] = {}
    for job in jobs:
        chunk_size = job.model.routing.chunk_size
        if reference is None or not isinstance(chunk_size, int):
            continue
        if replace(job.model, routing=replace(job.model.routing, chunk_size=reference.routing.chunk_size)) == reference:
            found.setdefault(chunk_size, job.arm)
    return found

"""The sections of the report. Each is a function of the gathered results and states only what they show."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from scipy import stats

from distill.comparison.claims import Finding, Part
from distill.comparison.gather import QUANTITIES, Gathered
from distill.comparison.statistics import LEVEL, Paired, mean_interval, paired
from distill.metrics import Interval

IMAGES = (
    "frechet", "class_agreement", "high_frequency_ratio", "high_frequency_departure", "spectral_distance_data",
    "gradient_distance_data", "edge_width", "sparsity_fine", "grain",
)  # fmt: skip
SYMPTOMS = ("magnitude", "magnitude_departure", "gradient", "gradient_departure", "redundancy")
NONE = "-"


def method_section(gathered: Gathered, where: str) -> str:
    """What was done, what is missing, and how little a few seeds can decide."""
    comparison = gathered.comparison
    config, train = comparison.config, comparison.jobs[0].config.train
    shapes = [f"- **{size}**: {_shape(gathered, size)}" for size in comparison.sizes]
    paragraphs = [
        f"`scripts/compare_routings.py`, {where}. Every arm has the same seeds ({', '.join(map(str, config.seeds))}), "
        "and with a seed the same initial weights of what arms share, order of data, noise, t and dropped labels.",
        "\n".join(shapes),
        f"AdamW {train.optim.lr:g}, betas {train.optim.betas[0]:g} and {train.optim.betas[1]:g}, warm-up "
        f"{train.optim.warmup_steps}, decay over the last {100 * train.optim.decay_fraction:g} %, clip "
        f"{train.optim.clip_norm:g}, batch {train.train.batch_size}, EMA {train.flow_matching.ema_decay:g}. Loss: flow "
        f"matching on {config.validation.num_images} held-out images, noise and stratified t the same for all; of the "
        f"EMA or the raw weights. Images, of the EMA: {config.measuring.evaluate.num_images} per job, "
        f"{config.measuring.num_steps} Euler steps, cfg_scale {config.measuring.cfg_scale:g}, the same noise for all.",
        _missing(gathered),
        _power(len(config.seeds)),
    ]
    return "\n\n".join(paragraphs)


def _shape(gathered: Gathered, size: str) -> str:
    jobs = [job for job in gathered.comparison.jobs if job.size == size]
    model, train = jobs[0].model, jobs[0].config.train.train
    return (
        f"{model.depth} blocks ({2 * model.depth} sublayers) of width {model.hidden_size}, {model.num_heads} heads, "
        f"patch {model.patch_size}; {train.steps:,} updates"
    )


def _missing(gathered: Gathered) -> str:
    comparison, missing = gathered.comparison, gathered.missing
    if not missing:
        return f"All {len(comparison.jobs)} jobs are finished."
    groups: dict[str, list[str]] = {}
    for job in missing:
        groups.setdefault(f"{job.size} seed{job.seed}", []).append(job.arm)
    listed = (f"{name}: {_arms(arms, comparison.arms)}" for name, arms in groups.items())
    return f"**{len(missing)} of {len(comparison.jobs)} jobs are missing**: {'; '.join(listed)}."


def _arms(some: Sequence[str], everything: Sequence[str]) -> str:
    return "all arms" if len(some) == len(everything) else ", ".join(some)


def _power(num_seeds: int) -> str:
    if num_seeds < 2:
        return "With a single seed nothing can be decided: there is no spread to hold a difference against."
    factor = stats.t.ppf(0.5 + LEVEL / 2, num_seeds - 1) / math.sqrt(num_seeds)
    return (
        f"Intervals are 95 % t intervals over seeds, tests are paired over seeds. {num_seeds} seeds are few: a mean "
        f"difference must exceed {factor:.2f} standard deviations of the differences to be told from zero, normality "
        "cannot be checked, and an interval says nothing of other data, sizes or lengths of training. p-values are "
        "not corrected for the number of comparisons; of twenty true nulls, one falls below 0.05."
    )


def claims_section(gathered: Gathered, findings: Sequence[Finding]) -> str:
    """One row per claim and size, one column per quantity; the last section shows the parts."""
    lines = [
        "## What the paper claims, here",
        "",
        "*holds*: all parts of the claim have intervals on its side of zero and seeds that agree. *does not hold*: one "
        "part has them on the other side. *not decided*: neither. *not tested*: something is missing.",
        "",
        "| claim | size | verdict by quantity |",
        "|---|---|---|",
    ]
    rows: dict[tuple[str, str], list[Finding]] = {}
    for found in findings:
        rows.setdefault((found.claim, found.size), []).append(found)
    for (claim, size), group in rows.items():
        verdicts = "<br>".join(f"{QUANTITIES[f.quantity].title}: {_said(f)}" for f in group)
        lines.append(f"| {claim} | {size} | {verdicts} |")
    return "\n".join(lines)


def _said(found: Finding) -> str:
    if not found.parts:
        return f"{found.verdict} ({found.note})"
    parts = "; ".join(_short(part, QUANTITIES[found.quantity].digits) for part in found.parts)
    return f"**{found.verdict}** ({parts})"


def _short(part: Part, digits: int) -> str:
    if part.difference is None:
        return f"{part.arm}: missing"
    return f"{part.arm} - {part.against} {part.difference.mean.value:+.{digits}f}, p {_p(part.difference)}"


def loss_section(gathered: Gathered) -> str:
    """One table per size: the loss at equal steps and equal time, and its differences from the baselines."""
    clock = gathered.comparison.config.baselines[0]
    lines = [
        "## Held-out loss",
        "",
        f"Equal time: the loss, of EMA or raw weights whichever is lower, when `{clock}` of the same seed had finished "
        "all its updates; linear between validations. A slower arm has not gone through the whole decay of its rate "
        "then, which counts against it: its schedule was not fitted to the shorter run. As recorded: seconds of the "
        "training itself, whatever else the machine did.",
    ]
    for size in gathered.sizes:
        lines += ["", f"### {size}", "", *_table(gathered, size, ("loss", "loss_raw", "loss_at_time", "loss_at_cost"))]
        for quantity in ("loss", "loss_raw"):
            lines += ["", *_baseline_table(gathered, size, quantity)]
    return "\n".join(lines)


def images_section(gathered: Gathered) -> str:
    """Measures of drawn images, by size."""
    known = (name for name in IMAGES if name in gathered.data)
    data = ", ".join(f"{QUANTITIES[name].title} {gathered.data[name]:.{QUANTITIES[name].digits}f}" for name in known)
    lines = ["## Images", "", f"Means over seeds with 95 % intervals. The data's own values: {data}."]
    for size in gathered.sizes:
        lines += ["", f"### {size}", "", *_table(gathered, size, IMAGES)]
        lines += ["", *_baseline_table(gathered, size, "frechet")]
    return "\n".join(lines)


def symptoms_section(gathered: Gathered) -> str:
    """One number per symptom and size."""
    lines = [
        "## The three symptoms",
        "",
        f"`dar.diagnostics.symptoms` of the EMA on {gathered.comparison.config.measuring.symptom_images} held-out "
        "images over all t. Magnitude: RMS(z_K) / RMS(z_1). Gradient: RMS(dL/dv) of the first block over the last. "
        "Redundancy: mean cosine of neighbouring z_k in the second half of depth. In the paper's SiT-XL/2 (28 blocks, "
        "600K updates) the plain stream grows 102-fold, its gradient falls sharply after block 5, and the cosine is "
        f"above 0.9. Here: {'; '.join(_presence(gathered, size) for size in gathered.sizes)}. A profile that is flat "
        "already leaves a routing nothing to mend.",
    ]
    for size in gathered.sizes:
        lines += ["", f"### {size}", "", *_table(gathered, size, SYMPTOMS)]
    return "\n".join(lines)


def _presence(gathered: Gathered, size: str) -> str:
    """How strongly the first baseline shows each symptom."""
    first = gathered.comparison.config.baselines[0]
    values = (gathered.by_seed(name, size, first) for name in ("magnitude", "gradient", "redundancy"))
    said = ", ".join(f"{statistics.mean(v.values()):.2f}" if v else NONE for v in values)
    return f"`{first}` at size {size} has {said} (magnitude, gradient, redundancy)"


def _table(gathered: Gathered, size: str, quantities: Sequence[str]) -> list[str]:
    """Mean and interval of each arm. Columns without any value are left out."""
    arms = [arm for arm in gathered.comparison.arms if gathered.of(size, arm)]
    known = [name for name in quantities if any(gathered.by_seed(name, size, arm) for arm in arms)]
    rows = [
        [f"`{arm}`", *(_mean(gathered.by_seed(name, size, arm), QUANTITIES[name].digits) for name in known)]
        for arm in arms
    ]
    return _markdown(["arm", *(QUANTITIES[name].title for name in known)], rows)


def _baseline_table(gathered: Gathered, size: str, quantity: str) -> list[str]:
    """Values by seed and the paired differences from every baseline."""
    comparison, digits = gathered.comparison, QUANTITIES[quantity].digits
    baselines = comparison.config.baselines
    rows = []
    for arm in (arm for arm in comparison.arms if gathered.of(size, arm)):
        own = gathered.by_seed(quantity, size, arm)
        row = [f"`{arm}`", " ".join(f"{own[seed]:.{digits}f}" for seed in comparison.config.seeds if seed in own)]
        for baseline in baselines:
            found = paired(own, gathered.by_seed(quantity, size, baseline)) if arm != baseline else None
            row += [_interval(found.mean, digits, signed=True), _p(found)] if found else [NONE, NONE]
        rows.append(row)
    headings = [part for name in baselines for part in (f"minus `{name}`", "p")]
    return _markdown(["arm", f"{QUANTITIES[quantity].title}, by seed", *headings], rows)


def cost_section(gathered: Gathered) -> str:
    """Parameters, time and memory of an update; the recorded time if there is no timing."""
    lines = ["## Cost", ""]
    if gathered.costs:
        lines.append(
            "All arms of a size in turn, in one process, whole updates (data, forward, backward, AdamW, EMA). Memory: "
            "weights, EMA, Adam's moments and the most live tensors of an update."
        )
    else:
        lines.append("No timing side by side yet (`--timing`); recorded during training, on a shared machine.")
    for size in gathered.sizes:
        lines += ["", f"### {size}", "", *(_costs(gathered, size) if gathered.costs else _recorded(gathered, size))]
    return "\n".join(lines)


def _costs(gathered: Gathered, size: str) -> list[str]:
    clock = gathered.costs.get((size, gathered.comparison.config.baselines[0]))
    rows = []
    for cost in (cost for cost in gathered.costs.values() if cost.size == size):
        low, high = cost.quartiles_ms
        against = f"{cost.ms / clock.ms:.2f}" if clock else NONE
        time = [f"{cost.ms:.1f}", f"{low:.1f} to {high:.1f}", against]
        rows.append([f"`{cost.arm}`", f"{cost.parameters:,}", *time, f"{cost.memory_bytes / 2**20:.0f}"])
    return _markdown(["arm", "parameters", "ms per update, median", "interquartile range", "ratio", "MiB"], rows)


def _recorded(gathered: Gathered, size: str) -> list[str]:
    rows = []
    for arm in gathered.comparison.arms:
        results = gathered.of(size, arm)
        if results:
            ms = statistics.median(1e3 * result.train_s / result.trained.curve[-1].step for result in results)
            rows.append([f"`{arm}`", f"{results[0].trained.parameters:,}", f"{ms:.0f}"])
    return _markdown(["arm", "parameters", "ms per update"], rows)


def parts_section(findings: Sequence[Finding]) -> str:
    """Every comparison behind the verdicts, with its values by seed."""
    rows = [_part_row(found, part) for found in findings for part in found.parts]
    headings = ["size", "quantity", "difference", "by seed", "mean [95 %]", "p", "below zero"]
    return "\n".join([f"## The {len(rows)} comparisons behind the verdicts", "", *_markdown(headings, rows)])


def _part_row(found: Finding, part: Part) -> list[str]:
    quantity = QUANTITIES[found.quantity].title
    arms = f"`{part.arm}` - `{part.against}`"
    return [found.size, quantity, arms, *_difference(part, found.quantity), str(part.verdict)]


def _difference(part: Part, quantity: str) -> list[str]:
    found, digits = part.difference, QUANTITIES[quantity].digits
    if found is None:
        return [NONE, NONE, NONE]
    by_seed = " ".join(f"{d:+.{digits}f}" for d in found.differences)
    return [by_seed, _interval(found.mean, digits, signed=True), _p(found)]


def _mean(values: Mapping[int, float], digits: int) -> str:
    return _interval(mean_interval(list(values.values())), digits) if values else NONE


def _interval(interval: Interval, digits: int, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    value = f"{interval.value:{sign}.{digits}f}"
    if math.isnan(interval.low):
        return value
    return f"{value} [{interval.low:{sign}.{digits}f}, {interval.high:{sign}.{digits}f}]"


def _p(found: Paired) -> str:
    if math.isnan(found.p):
        return NONE
    return f"{found.p:.3f}" if found.p >= 0.001 else "< 0.001"


def _markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    return lines + [f"| {' | '.join(row)} |" for row in rows]

"""The comparison of routings: equal conditions, a queue that loses nothing, statistics, claims, and the whole."""

from __future__ import annotations

import json
import math
import runpy
import signal
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
import yaml
from scipy import stats

from dar import SiT
from distill.comparison import jobs as queue
from distill.comparison.claims import Claim, arms_by_chunk_size, chunk_finding, claims_on, finding
from distill.comparison.config import Comparison, Job, ValidationConfig, load_comparison
from distill.comparison.gather import QUANTITIES, Gathered, Result, figures_at_time
from distill.comparison.measuring import MEASURES_FILE, MeasuredJob, is_measured
from distill.comparison.report import write_report
from distill.comparison.statistics import (
    Verdict,
    all_of,
    chunk_sizes_of_rule,
    departure,
    mean_interval,
    paired,
    summarise,
    value_at,
    verdict,
)
from distill.comparison.timing import Cost, LiveBytes, time_arms
from distill.comparison.training import (
    CurvePoint,
    Trained,
    ValidatedTask,
    build_task,
    held_out,
    held_out_loss,
    is_trained,
    load_data,
    num_trainable,
    stratified_t,
    train_job,
)
from distill.config import TConfig
from distill.data.idx import IdxDataset
from distill.errors import NonFiniteError, UserError
from distill.seeds import generator_for

ROOT = Path(__file__).parents[1]
ARMS = {
    "residual": {"model": {"routing": {"kind": "residual"}}},
    "static": {"model": {"routing": {"query": "static", "chunk_size": 2}}},
    "static_t": {"model": {"routing": {"chunk_size": 2}}},
    "static_t_dense": {"model": {"routing": {"chunk_size": 1}}},
    "dynamic": {
        "model": {"routing": {"query": "dynamic", "chunk_size": 2}},
        "by_size": {"deep": {"model": {"depth": 4}}},
    },
}


def write_idx(path: Path, values: np.ndarray) -> None:
    header = b"\x00\x00\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory) -> Path:
    """60 training and 12 test images of 28 x 28: the shipped statistics are of that shape."""
    folder = tmp_path_factory.mktemp("idx")
    random = np.random.default_rng(0)
    for prefix, num in (("train", 60), ("t10k", 12)):
        write_idx(folder / f"{prefix}-images-idx3-ubyte", random.integers(0, 256, (num, 28, 28)))
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", np.arange(num) % 10)
    return folder


@pytest.fixture
def settings(tmp_path, data_folder) -> dict:
    """Two arms, two seeds, two updates."""
    model = {"input_size": 28, "patch_size": 14, "in_channels": 1, "num_classes": 10, "gelu": "none", "num_heads": 2}
    return {
        "output": str(tmp_path / "out"),
        "report": str(tmp_path / "report" / "routings.md"),
        "seeds": [0, 1],
        "validation": {"num_images": 6, "every": 1},
        "measuring": {"num_steps": 1, "symptom_images": 4, "evaluate": {"num_images": 20, "bootstrap": 2}},
        "base": {
            "model": {**model, "hidden_size": 8},
            "data": {"path": str(data_folder)},
            "optim": {"lr": 1e-2},
            "train": {"steps": 2, "batch_size": 4},
        },
        "sizes": {"small": {"model": {"depth": 2}}},
        "arms": {name: ARMS[name] for name in ("residual", "static_t")},
    }


def load(settings: dict, *overrides: str) -> Comparison:
    path = Path(settings["output"]).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return load_comparison(path, overrides)


# What is compared


def test_jobs_are_ordered_by_seed_then_size_then_arm_and_carry_their_changes(settings):
    settings["sizes"]["deep"] = {"model": {"depth": 3}, "train": {"steps": 7}}
    settings["arms"]["dynamic"] = ARMS["dynamic"]
    jobs = load(settings).jobs
    assert [job.name for job in jobs[:4]] == [
        "small/residual/seed0", "small/static_t/seed0", "small/dynamic/seed0", "deep/residual/seed0",
    ]  # fmt: skip
    assert [job.seed for job in jobs] == [0] * 6 + [1] * 6
    by_name = {job.name: job for job in jobs}
    assert by_name["deep/residual/seed1"].model.depth == 3 and by_name["deep/dynamic/seed1"].model.depth == 4
    assert by_name["deep/static_t/seed1"].model.routing.chunk_size == 2
    assert by_name["deep/static_t/seed1"].config.train.train.steps == 7
    assert by_name["small/static_t/seed1"].config.train.train.seed == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": {}}, "arms must be a section"),
        ({"seeds": [1, 1]}, "seeds must be different"),
        ({"baselines": ["plain"]}, r"baselines must name arms \(residual, static_t\); got \['plain'\]"),
        ({"arms": {"residual": {"model": {"depth": 0}}}}, "size small, arm residual: model.depth must be at least 1"),
        ({"validation": {"evry": 3}}, "did you mean validation.every"),
    ],
)
def test_mistakes_are_named(settings, change, message):
    with pytest.raises(UserError, match=message):
        load({**settings, **change})


def test_arms_of_a_seed_see_the_same_data_noise_t_and_labels_and_begin_with_the_same_weights(settings):
    settings["arms"] = ARMS
    jobs = load(settings).jobs
    data = load_data(jobs[0].config.train, "train")
    tasks = {job.name: build_task(job, data) for job in jobs}
    first, *others = [tasks[f"small/{arm}/seed0"] for arm in ARMS]
    for other in others:
        for step in (0, 1):
            assert all(torch.equal(a, b) for a, b in zip(first._draw(step), other._draw(step), strict=True))
        weights = dict(other.learner.module.named_parameters())
        assert all(torch.equal(value, weights[name]) for name, value in first.learner.module.named_parameters())
    other_seed = tasks["small/residual/seed1"]
    assert not torch.equal(first._draw(0)[1], other_seed._draw(0)[1])


def test_an_aligned_arm_is_judged_and_kept_without_its_projector(settings):
    settings["arms"]["residual"] = {**ARMS["residual"], "repa": {"encoder": "embedded", "block": 1}}
    settings["seeds"] = [0]
    comparison = load(settings)
    job = comparison.jobs[0]
    data = load_data(job.config.train, "train")
    assert "projector" in dict(build_task(job, data).learner.module.named_children())
    train_job(job, data, held_out(data, job.config.validation, TConfig()))
    trained = Trained.load(job.folder / "training.json")
    assert len(trained.curve) == 2 and math.isfinite(trained.curve[-1].raw)
    assert trained.parameters == num_trainable(SiT(job.model))
    SiT.from_pretrained(job.folder / "model")


def test_only_claims_whose_arms_are_there_are_judged():
    assert [claim.better for claim in claims_on(["residual", "residual_repa"])] == [("residual_repa",)]


# Validation


@pytest.mark.parametrize("t_sampler", ["uniform", "logit_normal"])
def test_stratified_t_has_one_value_in_each_stratum(t_sampler):
    t = stratified_t(50, TConfig(sampler=t_sampler), generator_for(0, "t")).double()
    u = t if t_sampler == "uniform" else torch.special.ndtr(torch.logit(t))
    assert sorted((u * 50).long().tolist()) == list(range(50))
    assert not torch.equal(t, t.sort().values)


def test_held_out_samples_are_those_of_the_seed_alone():
    random = np.random.default_rng(1)
    data = IdxDataset(random.integers(0, 256, (30, 8, 8)).astype(np.uint8), np.arange(30) % 3)
    config = ValidationConfig(num_images=20)
    torch.manual_seed(5)
    one = held_out(data, config, TConfig())
    torch.manual_seed(6)
    two = held_out(data, config, TConfig())
    assert torch.equal(one.eps, two.eps) and torch.equal(one.t, two.t) and torch.equal(one.x0, two.x0)
    assert not torch.equal(one.eps, held_out(data, replace(config, seed=1), TConfig()).eps)
    with pytest.raises(UserError, match=r"validation\.num_images = 31; there are 30"):
        held_out(data, ValidationConfig(num_images=31), TConfig())


def test_held_out_loss_is_the_mean_over_all_samples_whatever_the_batches(monkeypatch):
    data = IdxDataset(np.full((7, 4, 4), 255, np.uint8), np.zeros(7))
    samples = held_out(data, ValidationConfig(num_images=7), TConfig())
    monkeypatch.setattr("distill.comparison.training.VALIDATION_BATCH", 3)

    class Zero(torch.nn.Linear):
        def forward(self, x_t, t, y):
            assert not self.training
            return torch.zeros_like(x_t)

    model = Zero(1, 1)
    expected = (samples.eps - samples.x0).square().mean().item()
    assert held_out_loss(model, samples) == pytest.approx(expected, rel=1e-6)
    assert model.training


def test_time_for_validation_is_not_counted(monkeypatch):
    clock = iter(range(100))

    class Task:
        def update(self, step):
            next(clock)  # the update takes one second more than looking at the clock
            return {}

        class accelerator:  # noqa: N801
            device = torch.device("cpu")

        averaged_model = trained_model = None

    def slow_loss(*_):
        for _ in range(20):
            next(clock)
        return 0.0

    monkeypatch.setattr("distill.comparison.training.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("distill.comparison.training.held_out_loss", slow_loss)
    task = ValidatedTask(Task(), None)  # type: ignore[arg-type]
    task.update(0)
    task.probe(1, Path())
    task.update(1)
    assert task.probe(2, Path())["train_s"] == 4  # 2 s each, 40 s of validation between


# The queue


def test_a_claim_is_exclusive_and_given_back(tmp_path):
    with queue.claimed(tmp_path / "a.lock") as mine, queue.claimed(tmp_path / "a.lock") as second:
        assert mine and not second
    with queue.claimed(tmp_path / "a.lock") as mine:
        assert mine


def test_the_claim_of_a_dead_process_does_not_block(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from distill.comparison.jobs import claimed\n"
        "with claimed(Path(sys.argv[1])) as mine:\n    print(mine, flush=True); time.sleep(60)"
    )
    path = tmp_path / "job" / "seed0.lock"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None and process.stdout.readline() == "True\n"
        with queue.claimed(path) as mine:
            assert not mine
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with queue.claimed(path) as mine:
        assert mine


def test_the_queue_skips_what_is_done_or_claimed_and_comes_back(settings):
    jobs = load(settings).jobs
    done, order = {jobs[0].name}, []

    def do(job):
        order.append(job.name)
        done.add(job.name)

    with queue.claimed(queue.claim_path(jobs[1])):
        left = queue.run_queue(jobs, lambda job: job.name in done, do)
    assert order == [jobs[2].name, jobs[3].name] and left == [jobs[1]]
    assert queue.run_queue(jobs, lambda job: job.name in done, do) == []
    assert order[-1] == jobs[1].name


def test_a_job_that_another_process_finished_meanwhile_is_not_done_again(settings):
    jobs, order = load(settings).jobs, []
    asked: dict[str, int] = {}

    def is_done(job):  # not when the queue is made, but once the claim is taken
        asked[job.name] = asked.get(job.name, 0) + 1
        return asked[job.name] > 1

    assert queue.run_queue(jobs, is_done, order.append) == []
    assert order == []


def test_a_diverging_job_does_not_stop_the_others(settings, caplog):
    jobs, done = load(settings).jobs, set()

    def do(job):
        if job is jobs[0]:
            raise NonFiniteError("teacher: the loss is not finite")
        done.add(job.name)

    assert queue.run_queue(jobs, lambda job: job.name in done, do) == [jobs[0]]
    assert len(done) == 3 and "small/residual/seed0: teacher: the loss is not finite" in caplog.text


# Statistics


def test_paired_is_scipys_t_test_over_common_seeds():
    a, b = {0: 1.0, 1: 2.5, 2: 3.1, 5: 9.0}, {2: 2.0, 1: 2.0, 0: 1.2, 7: 0.0}
    found = paired(a, b)
    x, y = [a[s] for s in (0, 1, 2)], [b[s] for s in (0, 1, 2)]
    test = stats.ttest_rel(x, y)
    assert found is not None and found.differences == pytest.approx((-0.2, 0.5, 1.1))
    assert found.p == pytest.approx(test.pvalue)  # type: ignore[attr-defined]
    low, high = test.confidence_interval()  # type: ignore[attr-defined]
    assert (found.mean.low, found.mean.high) == pytest.approx((low, high))


def test_paired_by_hand():
    """Differences 1, 2, 3: mean 2, s = 1, half width 4.303 / sqrt(3) = 2.484, t = 3.464, p = 0.0742."""
    found = paired({0: 1.0, 1: 2.0, 2: 3.0}, {0: 0.0, 1: 0.0, 2: 0.0})
    assert found is not None
    assert (found.mean.value, found.mean.low, found.mean.high) == pytest.approx((2, -0.484, 4.484), abs=1e-3)
    assert found.p == pytest.approx(0.0742, abs=1e-4)


def test_too_few_seeds_decide_nothing():
    single = paired({0: 1.0}, {0: 5.0})
    assert single is not None and math.isnan(single.p) and math.isnan(single.mean.low)
    assert verdict(single) is Verdict.NOT_DECIDED
    assert paired({0: 1.0}, {1: 1.0}) is None
    equal = paired({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})
    assert equal is not None and equal.p == 1.0 and verdict(equal) is Verdict.NOT_DECIDED


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ((-1.0, -1.1, -0.9), Verdict.HOLDS),
        ((1.0, 1.1, 0.9), Verdict.DOES_NOT_HOLD),
        ((-1.0, -0.2, -0.1), Verdict.NOT_DECIDED),  # the interval includes zero
        ((-1.0, -0.9, -0.95, -0.9, -1.1, -1.0, -0.9, 0.01), Verdict.NOT_DECIDED),  # it does not, but a seed disagrees
        ((0.0, 0.0, 0.0), Verdict.NOT_DECIDED),
    ],
)
def test_verdicts(differences, expected):
    found = paired(dict(enumerate(differences)), dict.fromkeys(range(len(differences)), 0.0))
    assert found is not None and verdict(found) is expected


def test_a_claim_of_several_parts():
    holds, fails, undecided, untested = (
        Verdict.HOLDS, Verdict.DOES_NOT_HOLD, Verdict.NOT_DECIDED, Verdict.NOT_TESTED,
    )  # fmt: skip
    assert all_of([holds, holds]) is holds
    assert all_of([holds, undecided]) is undecided
    assert all_of([undecided, untested]) is untested
    assert all_of([holds, fails, untested]) is fails
    assert all_of([]) is untested


def test_value_at_is_linear_and_knows_its_ends():
    x, y = [10.0, 20.0, 40.0], [3.0, 2.0, 1.0]
    assert value_at(x, y, 30.0) == pytest.approx(1.5)
    assert value_at(x, y, 99.0) == 1.0
    assert math.isnan(value_at(x, y, 9.9))


def test_mean_interval():
    interval = mean_interval([1.0, 2.0, 3.0])
    assert (interval.low, interval.value, interval.high) == pytest.approx((-0.484, 2, 4.484), abs=1e-3)
    assert math.isnan(mean_interval([1.0]).low)


def test_symptoms_in_one_number():
    profiles = {
        "hidden_rms": [9.0, 2.0, 9.0, 9.0, 8.0],
        "gradient_rms": [6.0, 1, 1, 3.0],
        "neighbour_cosine": [0, 0, 0.5, 1],
    }
    found = summarise(profiles)
    assert found == pytest.approx({"magnitude": 4.0, "gradient": 2.0, "redundancy": 0.75})
    assert departure(4.0) == departure(0.25) == pytest.approx(math.log(4))
    assert departure(1.0) == 0.0 and math.isnan(departure(math.nan))


def test_the_rule_for_the_chunk_size_gives_the_papers_figures():
    assert chunk_sizes_of_rule(56) == pytest.approx((3.7, 4.9), abs=0.05)


# Figures and claims


def planted(comparison: Comparison, values: dict[str, list[float]], quantity: str = "loss") -> Gathered:
    """What would be gathered if the arms had these values by seed."""
    figures = {name: {size: {} for size in comparison.sizes} for name in QUANTITIES}
    for arm, by_seed in values.items():
        figures[quantity]["small"][arm] = dict(enumerate(by_seed))
    return Gathered(comparison, [], [], {}, {}, figures)


def test_claims_follow_the_figures(settings):
    settings["arms"] = ARMS
    comparison = load(settings)
    claim = Claim("", better=("static_t", "dynamic"), than=("static",))
    static, better, worse = [3.0, 3.1, 2.9], [2.0, 2.12, 1.9], [4.0, 4.12, 3.9]
    cases = {
        Verdict.HOLDS: {"static": static, "static_t": better, "dynamic": better},
        Verdict.DOES_NOT_HOLD: {"static": static, "static_t": better, "dynamic": worse},
        Verdict.NOT_DECIDED: {"static": static, "static_t": better, "dynamic": [2.9, 3.2, 2.8]},
        Verdict.NOT_TESTED: {"static": static, "static_t": better},
    }
    for expected, values in cases.items():
        assert finding(planted(comparison, values), claim, "small", "loss").verdict is expected


def test_the_rule_is_held_against_the_other_chunk_sizes(settings):
    """L = 8: the rule asks for 1.4 to 1.9, so S = 2 is to be better than S = 1."""
    settings["arms"] = ARMS
    settings["sizes"]["small"]["model"]["depth"] = 4
    comparison = load(settings)
    assert arms_by_chunk_size(comparison.jobs) == {2: "static_t", 1: "static_t_dense"}
    settings["sizes"]["small"]["model"]["depth"] = 20  # 3.2 to 4.1
    untested = chunk_finding(planted(load(settings), {}), "small", "loss")
    assert untested.verdict is Verdict.NOT_TESTED and untested.note == "trained: S = 1, 2"
    settings["arms"]["static_t"]["model"]["routing"]["chunk_size"] = 3
    try:
        rule = load(settings)
    finally:
        settings["arms"]["static_t"]["model"]["routing"]["chunk_size"] = 2
    low, high = [1.0, 1.1, 1.05], [2.0, 2.12, 2.0]
    good = chunk_finding(planted(rule, {"static_t": low, "static_t_dense": high}), "small", "loss")
    bad = chunk_finding(planted(rule, {"static_t": high, "static_t_dense": low}), "small", "loss")
    assert (good.verdict, bad.verdict) == (Verdict.HOLDS, Verdict.DOES_NOT_HOLD)


def test_images_without_classes_decide_nothing(settings):
    claim = Claim("", better=("static_t",), than=("residual",), quantities=("frechet",))
    gathered = planted(load(settings), {"residual": [9.0, 9.1, 9.0], "static_t": [1.0, 1.1, 1.05]}, "frechet")
    assert finding(gathered, claim, "small", "frechet").verdict is Verdict.HOLDS
    gathered.figures["class_agreement"]["small"]["residual"] = {0: 0.1, 1: 0.12, 2: 0.11}
    found = finding(gathered, claim, "small", "frechet")
    assert found.verdict is Verdict.NOT_TESTED and found.note.endswith("class agreement 0.11")
    gathered.figures["class_agreement"]["small"]["residual"] = {0: 0.6, 1: 0.7, 2: 0.8}
    assert finding(gathered, claim, "small", "frechet").verdict is Verdict.HOLDS


def test_loss_at_equal_time_on_both_clocks(settings):
    """The slow arm needs twice the time: when the baseline's 20 updates are done it has made 10."""
    comparison = load(settings)
    residual, slow = comparison.jobs[0], comparison.jobs[1]
    fast = Result(residual, Trained(1, [CurvePoint(10, 5.0, 4.0, 3.0), CurvePoint(20, 10.0, 2.0, 2.5)]), None)  # type: ignore
    other = Result(slow, Trained(1, [CurvePoint(5, 8.0, 9.0, 6.0), CurvePoint(15, 12.0, 3.0, 4.0)]), None)  # type: ignore
    costs = {("small", arm): Cost("small", arm, 1, [s, s], 0) for arm, s in (("residual", 0.1), ("static_t", 0.2))}
    found = figures_at_time(other, fast, costs)
    assert found["loss_at_time"] == pytest.approx(4.5)  # half way between 8 s and 12 s, from 6 to 3
    assert found["loss_at_cost"] == pytest.approx(4.5)  # update 10, half way between 5 and 15
    assert figures_at_time(fast, fast, costs)["loss_at_cost"] == 2.0
    assert math.isnan(figures_at_time(other, fast, {})["loss_at_cost"])
    assert math.isnan(figures_at_time(other, None, costs)["loss_at_time"])


# The whole


def test_live_bytes_counts_what_is_alive_at_once():
    with LiveBytes() as live:
        a = torch.zeros(1000)
        b = a + 1
        del a
        assert live.current == 4000
        c = b.view(10, 100)[:5] * 2
        c.add_(1)  # neither a view nor what is done in place is new
    assert (live.current, live.peak) == (6000, 8000)
    del b, c
    assert (live.current, live.peak) == (0, 8000)


def test_a_comparison_from_the_first_job_to_the_report(settings, capsys):
    """A part is reported as one; the script does what is missing and nothing twice."""
    comparison = load(settings)
    assert queue.run_jobs(replace(comparison, jobs=comparison.jobs[:3])) == []
    report = write_report(comparison)
    assert "1 of 4 jobs are missing**: small seed1: static_t." in report.read_text()
    stamps = [trained_at(job) for job in comparison.jobs[:3]]
    with patch("sys.argv", ["compare_routings.py", str(Path(settings["output"]).with_suffix(".yaml"))]):
        runpy.run_path(str(ROOT / "scripts" / "compare_routings.py"), run_name="__main__")
    assert capsys.readouterr().out.strip() == str(report)
    assert stamps == [trained_at(job) for job in comparison.jobs[:3]]
    for job in comparison.jobs:
        assert is_trained(job) and (job.folder / "model" / "model.safetensors").is_file()
        assert not (job.folder / "checkpoints").exists()
        assert [point.step for point in Trained.load(job.folder / "training.json").curve] == [1, 2]
    text = report.read_text()
    assert "All 4 jobs are finished" in text and "not decided" in text and "nan" not in text
    names = {path.name.removeprefix("routings") for path in report.parent.iterdir()}
    assert names == {".md", ".json", "_curves.png", "_differences.png", "_symptoms.png"}
    written = json.loads(report.with_suffix(".json").read_text())
    assert len(written["jobs"]) == 4 and len(written["jobs"][0]["symptoms"]["hidden_rms"]) == 3
    assert_a_full_disk_spares_the_pictures(comparison, report.parent)


def assert_a_full_disk_spares_the_pictures(comparison: Comparison, folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError("no space left on device")

    with patch("os.fsync", full), pytest.raises(OSError, match="no space"):
        write_report(comparison)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_trained_job_is_measured_anew_with_other_settings_and_refused_with_another_training(settings):
    settings["arms"] = {"residual": ARMS["residual"]}
    settings["seeds"] = [0]
    (job,) = load(settings).jobs
    data = load_data(job.config.train, "train")
    train_job(job, data, held_out(data, job.config.validation, TConfig()))
    MeasuredJob({"old": "settings"}, {}, {}).save(job.folder / MEASURES_FILE)
    stamp = trained_at(job)
    assert queue.run_jobs(load(settings)) == []
    assert trained_at(job) == stamp
    measured = MeasuredJob.load(job.folder / MEASURES_FILE)
    assert measured.settings["evaluate"]["num_images"] == 20
    del measured.settings["evaluate"]["vae"]  # as if measured before there was such a setting
    measured.save(job.folder / MEASURES_FILE)
    assert is_measured(job, load(settings).config.measuring)
    with pytest.raises(UserError, match=r"seed0 was trained with another .*train\.optim\.lr: 0\.01 there, 0\.5 here"):
        queue.run_jobs(load(settings, "base.optim.lr=0.5"))


def trained_at(job: Job) -> int:
    return (job.folder / "training.json").stat().st_mtime_ns


def test_costs_are_of_every_arm(settings):
    costs = time_arms(load(settings), repeats=2)
    assert [(cost.size, cost.arm, len(cost.seconds)) for cost in costs] == [
        ("small", "residual", 2),
        ("small", "static_t", 2),
    ]
    plain, routed = costs
    assert routed.parameters > plain.parameters and routed.memory_bytes > plain.memory_bytes > 5 * 4 * plain.parameters

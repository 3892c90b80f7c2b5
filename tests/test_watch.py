"""Looks at a student in training: what they measure, which student is kept, what guards do, and that all is resumed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dar import SiT
from dar.checkpoints.pickles import read_pickle
from distill.config import GuardsConfig, build_config
from distill.errors import UserError
from distill.metrics import measure
from distill.objectives import RunConfig, watching
from distill.objectives.watch import LOWER, WATCHED, Event, Look, Watch, Yardstick, faults, varieties, watched_values
from distill.report.training import TrainingPage, looks_table
from distill.training.checkpoint import checkpoints
from distill.training.run_log import read_log
from distill.verbs.run import run
from tests.conftest import perturbed, tiny_config, without_time

GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.arange(40) % 4


def pictures(num: int = 40, grain: float = 0.05, contrast: float = 0.5) -> Tensor:
    """Grey discs of several sizes, with grain."""
    side = torch.linspace(-1, 1, 16)
    radius = 0.3 + 0.5 * torch.rand(num, 1, 1, generator=GENERATOR)
    discs = torch.sigmoid(10 * (radius - (side[:, None] ** 2 + side**2).sqrt())) * 2 - 1
    return (contrast * discs + grain * torch.randn(num, 16, 16, generator=GENERATOR)).unsqueeze(1).clamp(-1, 1)


# --- what a look says --------------------------------------------------------------------------------------------


def test_varieties_are_distances_to_the_mean_of_the_condition() -> None:
    a, b, c = (torch.full((1, 16, 16), value) for value in (0.0, 0.4, 0.9))
    found = varieties(torch.stack([a, b, c]), torch.tensor([0, 0, 1]))
    assert found[:2].tolist() == pytest.approx([0.2 * math.sqrt(2)] * 2)  # of two, without bias
    mean = 1.3 / 3
    assert float(found[2]) == pytest.approx((0.9 - mean) * math.sqrt(1.5), rel=1e-5)  # alone: of all
    assert not varieties(a.expand(4, 1, 16, 16), torch.zeros(4)).any()


def test_away_is_in_spreads_of_the_teachers_pictures() -> None:
    teachers = pictures()
    stick = Yardstick.of(teachers, LABELS, {"grain": 10.0, "edge_width": math.nan})
    own = watched_values(teachers, LABELS, None)
    assert stick.target["grain"] == 10.0 and "edge_width" not in stick.target
    assert stick.target["contrast"] == own["contrast"]
    contrasts = torch.stack([image.std() for image in teachers[:, 0].flatten(1)])
    assert stick.spread["contrast"] == pytest.approx(float(contrasts.std()), rel=0.25)
    assert "colourfulness" not in stick.target  # of grey pictures
    look = stick.look(7, own)
    assert look.away["contrast"] == 0 and look.away["grain"] == pytest.approx(
        (own["grain"] - 10) / stick.spread["grain"]
    )
    assert look.score == pytest.approx(sum(map(abs, look.away.values())) / len(look.away))
    assert {f"watch/{name}" for name in own} | {"watch/score"} < set(look.figures())
    assert set(stick.target) <= set(WATCHED)


def test_a_score_rises_either_way() -> None:
    teachers = pictures()
    stick = Yardstick.of(teachers, LABELS, {})
    same, grainy, smooth, pale = (
        stick.look(1, watched_values(images, LABELS, teachers)).score
        for images in (pictures(), pictures(grain=0.2), pictures(grain=0.0), pictures(contrast=0.1))
    )
    assert max(same, 0) < min(grainy, smooth, pale)


def test_paired_values_need_the_teachers_pictures() -> None:
    teachers = pictures()
    assert "low_frequency_psnr" not in watched_values(teachers, LABELS, None)
    values = watched_values(teachers, LABELS, teachers)
    assert values["low_frequency_psnr"] > 80
    expected = measure(teachers, LABELS, data=None, extractor=None, num_bootstrap=0)
    assert values["grain"] == expected["grain"].value


def look_of(**away: float) -> Look:
    return Look(1, dict.fromkeys(away, 0.5), away, 1.0)


@pytest.mark.parametrize(
    ("away", "found"),
    [
        ({"grain": 3.0}, ["grain"]),
        ({"grain": -3.0}, []),
        ({"grain": 2.5}, []),  # the limit itself
        ({"sparsity_fine": 2.6, "grain": 1.0}, ["grain"]),
        ({"contrast": -3.0}, ["saturation"]),
        ({"clipped_share": 3.0, "contrast": 0.0}, ["saturation"]),
        ({"grid": 2.6}, ["grid"]),
        ({"edge_width": 2.6}, ["blur"]),
        ({"edge_width": -9.0}, []),
        ({"variety": -2.6}, ["variety"]),
        ({"variety": 9.0}, []),
        ({"grain": 2.4, "grid": 2.4, "edge_width": 2.4, "variety": -2.4}, []),
    ],
)
def test_which_guard_sees_what(away: dict[str, float], found: list[str]) -> None:
    assert list(faults(look_of(**away), None, GuardsConfig())) == found


@pytest.mark.parametrize(("lag", "found"), [(None, []), (1.0, []), (0.3, ["lag"]), (1.7, ["lag"])])
def test_a_lag_outside_its_band(lag: float | None, found: list[str]) -> None:
    assert list(faults(look_of(), lag, GuardsConfig())) == found
    assert not faults(look_of(), lag, GuardsConfig(lag="off"))


def test_a_reason_names_the_value_and_the_measure() -> None:
    (why,) = faults(look_of(grain=3.21), None, GuardsConfig()).values()
    assert why == "grain is 0.5, +3.2 spreads from its yardstick"
    assert str(Event(40, "grain", "warn", why)) == f"update 40: grain: {why}: warn"


@pytest.mark.parametrize(
    ("watch", "message"),
    [
        ({"every": 0}, "watch.every must be at least 1; got 0"),
        ({"num_images": 4}, "watch.num_images must be at least 8; got 4"),
        ({"guards": {"grain": "panic"}}, "watch.guards.grain must be one of off, warn, lower_rate, roll_back, stop"),
        ({"guards": {"lag_band": [2, 1]}}, "watch.guards.lag_band must be low < high from 0; got"),
    ],
)
def test_settings_are_checked(watch: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        build_config(RunConfig, {"output": "x", "watch": watch})
    assert message in str(raised.value)


# --- in a run ----------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A run of seconds, from a model of a few thousand parameters."""
    torch.manual_seed(0)
    perturbed(SiT(tiny_config(input_size=16)), std=0.15).save_pretrained(tmp_path / "base")
    monkeypatch.setattr("distill.verbs.run.preflight", lambda *_: 1.0)  # noise is no sane sample
    return {
        "output": str(tmp_path / "run"),
        "teacher": {"path": str(tmp_path / "base"), "steps": 2},
        "student": {"steps": 2, "rollout": "random_step", "ema_decay": 0.2, "optim": {"lr": 1e-3}},
        "objective": {"fake_score": {"updates": 1}},
        "train": {"steps": 4, "batch_size": 4, "log_every": 1, "save_every": 1, "keep": 9},
        "watch": {"every": 1, "num_images": 10, "teacher_steps": 2},
        "evaluate": {"num_images": 0},
    }


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """The scores that looks are given, by step."""
    given: dict[int, float] = {}
    look = Yardstick.look

    def scored(self: Yardstick, step: int, values: dict[str, float], decay: float | None = None) -> Look:
        found = look(self, step, values, decay)
        return replace(found, score=given.get(step, 9.0) - (0.5 if decay else 0))

    monkeypatch.setattr(Yardstick, "look", scored)
    return given


WATCH_FILE = "custom_checkpoint_1.pkl"


def weights(folder: Path) -> list[Tensor]:
    return list(SiT.from_pretrained(folder).state_dict().values())


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_student_of_the_best_look_is_kept(config: dict[str, Any], scores: dict[int, float], tmp_path: Path) -> None:
    scores |= {1: 3.0, 2: 1.0, 3: 2.0}
    run(config)
    run({**config, "output": str(tmp_path / "two"), "train": {**config["train"], "steps": 2}})
    assert equal(weights(tmp_path / "run" / "student"), weights(tmp_path / "two" / "student"))
    assert not equal(weights(tmp_path / "run" / "student"), weights(tmp_path / "run" / "student_last"))
    last = {**config, "output": str(tmp_path / "last"), "watch": {**config["watch"], "pick": False}}
    run(last)
    assert equal(weights(tmp_path / "run" / "student_last"), weights(tmp_path / "last" / "student"))
    held = [len(read_pickle(checkpoints(tmp_path / name)[-1] / WATCH_FILE)["averages"]) for name in ("run", "last")]
    assert held[0] > 0 == held[1]  # where nothing goes back to the best, it is not kept
    assert not (tmp_path / "last" / "student_last").exists() and not (tmp_path / "two" / "student_last").exists()
    scores[4] = 0.5  # going on, the last becomes the best
    run(config, from_step=3)
    assert not (tmp_path / "run" / "student_last").exists()


def test_the_best_of_several_averages_is_kept(config: dict[str, Any], scores: dict[int, float], tmp_path: Path) -> None:
    """At each look the second is half a point better; a run with its decay alone gives that average."""
    scores |= {2: 1.0}
    both = {**config, "student": {**config["student"], "more_ema_decays": [0.4]}}
    run(both)
    kept = weights(tmp_path / "run" / "student")
    assert len(list((tmp_path / "run" / "grids").glob("step_*.png"))) == 4
    record = read_log(tmp_path / "run")[1]
    assert record["watch/score"] == 1.0 and record["watch/score/0.4"] == 0.5
    alone = {**config, "output": str(tmp_path / "alone"), "student": {**config["student"], "ema_decay": 0.4}}
    run(alone)
    assert equal(kept, weights(tmp_path / "alone" / "student"))
    run(both, from_step=3)
    assert equal(kept, weights(tmp_path / "run" / "student"))


@pytest.mark.parametrize("after", [1, 3])
def test_the_best_look_is_resumed(config: dict[str, Any], scores: dict[int, float], tmp_path: Path, after: int) -> None:
    """A later best is forgotten where the run goes another way from before it."""
    scores |= {1: 3.0, 2: 1.0, 3: 2.0}
    run(config)
    kept, log = weights(tmp_path / "run" / "student"), without_time(tmp_path / "run")
    run(config, from_step=after)
    assert equal(weights(tmp_path / "run" / "student"), kept)
    assert without_time(tmp_path / "run") == log and all("watch/score" in record for record in log)


def test_the_page_says_which_student_it_is(config: dict[str, Any], scores: dict[int, float], tmp_path: Path) -> None:
    scores |= {2: 1.0}
    config["evaluate"] = {"num_images": 10, "bootstrap": 2, "teacher_reference": None}
    done = run(config)
    assert done is not None and done.report is not None
    page = done.report.read_text()
    assert "The student is that of update 2 of 4, the look with the lowest score, 1.00 against 9.00" in page
    assert "Looks on the way" in page and "2 (best)" in page
    assert not (tmp_path / "run" / "report" / "training.html").exists()  # of so short a run


def test_a_page_on_the_way(
    config: dict[str, Any], scores: dict[int, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores |= {2: 1.0}
    config["train"]["steps"] = 2
    monkeypatch.setattr("distill.report.training.AT_MOST_EVERY", 0.0)
    written: list[int] = []
    write = TrainingPage.write

    def noted(self: TrainingPage, watch: Watch) -> Path:
        written.append(len(watch.looks))
        return write(self, watch)

    monkeypatch.setattr(TrainingPage, "write", noted)
    run(config)
    assert written == [1, 2, 2]  # at each look, and at the end
    on_the_way = (tmp_path / "run" / "report" / "training.html").read_text()
    assert "2 (best)" in on_the_way and 'http-equiv="refresh"' in on_the_way
    assert "Looks: score" in on_the_way


def test_what_guards_do_and_that_it_is_resumed(
    config: dict[str, Any], scores: dict[int, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    """At the third look two roll back, which is done once, at the fifth one stops."""
    scores |= {1: 3.0, 2: 1.0}
    config["train"]["steps"] = 7

    def found(look: Look, lag: float | None, guards: GuardsConfig) -> dict[str, str]:
        return {3: {"grain": "too much", "blur": "too wide"}, 4: {"lag": "too large"}, 5: {"grid": "seen"}}.get(
            look.step, {}
        )

    monkeypatch.setattr(watching, "faults", found)
    config["watch"]["guards"] = {"grain": "roll_back", "blur": "roll_back", "lag": "lower_rate", "grid": "stop"}
    seen: list[tuple[int, Watch, list[float], bool]] = []
    act = watching.Watcher._act

    def recorded(self: watching.Watcher, look: Look, lag: float | None) -> None:
        act(self, look, lag)
        trained = {name: p.detach() for name, p in self.learners[-1].module.named_parameters() if p.requires_grad}
        back = all(torch.equal(trained[name], self.watch.averages[name]) for name in trained)
        seen.append((look.step, self.watch, [learner.rate_factor for learner in self.learners], back))

    monkeypatch.setattr(watching.Watcher, "_act", recorded)
    with caplog.at_level("WARNING", logger="distill"):
        run(config)
    assert caplog.messages == [
        "watch: update 3: grain: too much: roll_back",
        "watch: update 3: blur: too wide: roll_back",
        "watch: update 4: lag: too large: lower_rate",
        "watch: update 5: grid: seen: stop",
    ]
    assert [step for step, *_ in seen] == [1, 2, 3, 4, 5]
    assert [rates for _, _, rates, _ in seen] == [[1, 1], [1, 1], [LOWER] * 2, [LOWER**2] * 2, [LOWER**2] * 2]
    assert [back for *_, back in seen] == [True, False, True, False, False]  # the first average is the student itself
    log, kept = without_time(tmp_path / "run"), weights(tmp_path / "run" / "student")
    assert [record["step"] for record in log] == [1, 2, 3, 4, 5]
    for after in (2, 3, 5):
        run(config, from_step=after)
        assert equal(weights(tmp_path / "run" / "student"), kept)
        assert without_time(tmp_path / "run") == log


def test_a_look_that_fails_loses_no_update(config: dict[str, Any], tmp_path: Path, monkeypatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no look")

    monkeypatch.setattr(watching, "watched_values", broken)
    with pytest.raises(RuntimeError, match="no look"):
        run(config)
    assert (tmp_path / "run" / "checkpoints" / "step_00000001").is_dir()


def shipped(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A short run from the shipped teacher, with one look at its end."""
    sound = {
        "teacher": {"path": "embedded"},
        "student": {"steps": 2, "rollout": "every_step"},
        "train": {"steps": 10, "batch_size": 6, "log_every": 10, "save_every": 10},
        "watch": {"every": 10, "num_images": 60, "teacher_steps": 5},
    }
    return {**config, **sound, **changes}


@pytest.mark.parametrize(
    ("changes", "guard"),
    [
        ({"student": {"steps": 2, "rollout": "every_step", "optim": {"lr": 1e-2}}}, "grain"),
        ({"teacher": {"path": "embedded", "cfg_scale": 12.0}}, "blur"),
        (
            {
                "student": {"steps": 2, "rollout": "every_step", "optim": {"lr": 1e-3}},
                "objective": {"fake_score": {"updates": 1, "optim": {"lr": 0.0}}},
            },
            "saturation",
        ),
    ],
    ids=["a rate a hundred times too high", "guidance of 12", "a critic that never learns"],
)
def test_faults_are_seen(config: dict[str, Any], tmp_path: Path, changes: dict[str, Any], guard: str) -> None:
    run(shipped(config, changes))
    page = (tmp_path / "run" / "report" / "training.html").read_text()
    assert f"update 10: {guard}: " in page


def test_a_sound_run_is_left_alone(config: dict[str, Any], tmp_path: Path, caplog) -> None:
    with caplog.at_level("WARNING", logger="distill"):
        run(shipped(config, {}))
    assert not caplog.messages


def test_a_table_of_many_looks_is_short(tmp_path: Path) -> None:
    looks = [Look(step, {"grain": 20.0, "variety": 0.1}, {"grain": 0.5}, abs(step - 41) / 10) for step in range(1, 201)]
    watch = Watch(looks, [Event(7, "grain", "warn", "why")], best=40)
    table = looks_table(watch)
    assert len(table.rows) <= 42 and table.rows[-1][0] == "200" and table.header[:3] == ["update", "score", "grain"]
    assert ["41 (best)", "0.00", "20.0 (+0.5)", "0.100"] in table.rows
    page = TrainingPage(tmp_path, "a title")
    page.on_look(watch)  # too soon
    assert not (tmp_path / "report").exists()
    page.write(watch)
    written = (tmp_path / "report" / "training.html").read_text()
    assert "41 (best)" in written and "update 7: grain: why: warn" in written
    page.on_look(Watch(looks[:2], best=0))  # too soon
    assert (tmp_path / "report" / "training.html").read_text() == written

"""The experiment on edges: which models it trains, and a small one of its kind from end to end."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "compare" / "edge_preservation.yaml"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare_students", ROOT / "scripts" / "compare_students.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "compare_students", module)
    spec.loader.exec_module(module)
    return module


def test_the_shipped_experiment(script: ModuleType) -> None:
    edges = script.Experiment.load(CONFIG, [])
    jobs = list(script.all_jobs(edges))
    assert len(jobs) == 2 * 5 + 2 * 3 * (5 + 2 + 2 + 2)
    begins = [job for job in jobs if job.retrofit_of]
    assert all(jobs.index(job) > [j.folder for j in jobs].index(job.retrofit_of) for job in begins)
    by_name = {job.name: job for job in jobs}
    longer = by_name["runs/edge_preservation/students/4_steps/plain_longer/teacher1_seed2"].config
    assert longer.train.steps == 195 and longer.train.seed == 2
    assert longer.teacher.path == "runs/edge_preservation/teachers/plain_longer/seed1"
    assert by_name["runs/edge_preservation/students/lora/dar/teacher0_seed0"].config.roles.trainable == "lora"


def test_a_small_one_from_end_to_end(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    values = yaml.safe_load(CONFIG.read_text())
    pixels = np.random.default_rng(0).integers(0, 255, (40, 8, 8, 1), dtype=np.uint8)
    np.savez("data.npz", images=pixels, labels=np.arange(40) % 2)
    values["teacher"]["model"] |= {"input_size": 8, "patch_size": 4, "hidden_size": 16, "depth": 2, "num_classes": 2}
    values["teacher"]["data"] = {"name": "npz", "path": "data.npz"}
    short = {"steps": 2, "grid_every": 2, "save_every": 2, "batch_size": 4, "log_every": 1}
    values["teacher"]["train"] |= short
    values["student"]["train"] |= short
    values["student"]["teacher"] = {"cfg_scale": 1.5, "steps": 2}
    values["arms"] = {"plain": {}, "dar_retrofitted": {"retrofit_of": "plain"}}
    values["variants"] = {"2_steps": {"student": {"student": {"steps": 2}}}}
    values |= {"teacher_seeds": [0], "student_seeds": [0, 1]}
    values["evaluate"] = {"num_images": 12, "data": values["teacher"]["data"], "bootstrap": 4, "offline": True}
    Path("edges.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.setattr("distill.verbs.run.preflight", lambda *_: 1.0)  # two updates teach a teacher nothing
    for arguments in (["edges.yaml", "--dry-run"], ["edges.yaml"], ["edges.yaml", "--dry-run"]):
        monkeypatch.setattr(sys, "argv", ["compare_students", *arguments])
        script.main()
    said = capsys.readouterr().out
    assert said.count("teachers/plain/seed0") == 1 and "pages/2_steps/report.html" in said
    page = Path("runs/edge_preservation/pages/2_steps/report.html").read_text()
    assert "dar_retrofitted against plain" in page
    monkeypatch.setattr(sys, "argv", ["compare_students", "edges.yaml", "student.train.batch_size=8"])
    with pytest.raises(SystemExit, match=r"trained with another configuration \(train\.batch_size: 4 there, 8 here\)"):
        script.main()
    monkeypatch.setattr(sys, "argv", ["compare_students", "edges.yaml", "arms=3"])
    with pytest.raises(SystemExit, match="arms must be a section"):
        script.main()

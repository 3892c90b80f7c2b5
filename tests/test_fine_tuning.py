"""Retrofit and fine-tuning: whole, routers only, or with adapters."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dar import RoutingConfig, SiT, function_error
from dar.checksums import CHECKSUMS_FILE
from distill.cli import main
from distill.conditions import ClassLabels, condition_of
from distill.config import StartConfig, TrainConfig
from distill.errors import UserError
from distill.models.lora import plain_model
from distill.training.start import starting_model
from tests.conftest import perturbed, tiny_config
from tests.test_cli import refused, write_idx


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = SiT(tiny_config(routing=RoutingConfig(kind="residual"), num_classes=2))
    perturbed(model)
    model.save_pretrained(tmp_path / "plain")
    (tmp_path / "plain" / "classes.json").write_text('["a", "b"]')
    return tmp_path / "plain"


@pytest.fixture
def routed(plain: Path, tmp_path: Path) -> Path:
    assert main(["retrofit", str(plain), str(tmp_path / "routed"), "routing.chunk_size=2"]) == 0
    return tmp_path / "routed"


def fine_tune(tmp_path: Path, start: Path, *overrides: str) -> Path:
    data = tmp_path / "data"
    if not data.exists():
        write_idx(data)
    config = tmp_path / "fine_tune.yaml"
    config.write_text(f"""
output: {tmp_path / "run"}
start: {{path: {start}}}
data: {{name: idx, path: {data}}}
flow_matching: {{ema_decay: 0.1}}
optim: {{lr: 0.01}}
train: {{steps: 3, batch_size: 4, log_every: 1, grid_every: 9, save_every: 9}}
grid_steps: 2
""")
    assert main(["train", str(config), *overrides]) == 0
    return tmp_path / "run" / "teacher"


def changed(before: SiT, after: SiT) -> set[str]:
    """Names of the parameters that differ, without block numbers."""
    old = before.state_dict()
    return {name for name, tensor in after.state_dict().items() if not torch.equal(tensor, old[name])}


def test_retrofit_keeps_the_function_and_the_files(plain, routed, capsys) -> None:
    assert (routed / "classes.json").read_text() == '["a", "b"]'
    before, after = SiT.from_pretrained(plain), SiT.from_pretrained(routed)
    assert after.config.routing == RoutingConfig(scale="count", chunk_size=2)
    assert function_error(before, after)[0] < 1e-5


def test_retrofit_says_what_it_changed(plain, tmp_path, capsys) -> None:
    assert main(["retrofit", str(plain), str(tmp_path / "d"), "routing.chunk_size=1"]) == 0
    assert "at most 0.0e+00, RMS 0.0e+00" in capsys.readouterr().out
    assert (
        main(["retrofit", str(plain), str(tmp_path / "l"), "routing.summary=last", "routing.chunk_size=2", "--lossy"])
        == 0
    )
    worst, typical = function_error(SiT.from_pretrained(plain), SiT.from_pretrained(tmp_path / "l"))
    assert worst > 1e-3
    assert f"at most {worst:.1e}, RMS {typical:.1e}" in capsys.readouterr().out


def test_retrofit_refuses(plain, routed, tmp_path, capsys) -> None:
    target = str(tmp_path / "new")
    line = refused(capsys, "retrofit", str(plain), target, "routing.summary=last", "routing.chunk_size=2")
    assert "summary 'last'" in line and "(--lossy) takes any" in line
    assert "this one has 'dar'" in refused(capsys, "retrofit", str(routed), target)
    assert "this one has 'dar'" in refused(capsys, "retrofit", "embedded", target)
    assert "target" in refused(capsys, "retrofit", str(plain), str(routed))
    assert "is not a folder" in refused(capsys, "retrofit", str(tmp_path / "none"), target)
    assert "did you mean routing.query" in refused(capsys, "retrofit", str(plain), target, "routing.qery=static")
    assert "adds up to 3" in refused(capsys, "retrofit", str(plain), target, "routing.chunk_size=[1,2]")
    assert not Path(target).exists()


def test_whole_fine_tuning_moves_backbone_and_routing(routed, tmp_path) -> None:
    names = changed(SiT.from_pretrained(routed), SiT.from_pretrained(fine_tune(tmp_path, routed)))
    assert "routing.queries.weight" in names and "blocks.1.mlp.fc2.weight" in names


def test_routers_only_moves_nothing_else(routed, tmp_path) -> None:
    after = SiT.from_pretrained(fine_tune(tmp_path, routed, "start.trainable=routing"))
    names = changed(SiT.from_pretrained(routed), after)
    # The gate of e(t) starts to learn with the first step, like the query itself.
    assert names == {"routing.queries.weight", "routing.queries.t_gate"}


def test_lora_moves_adapted_layers_and_routing_and_is_merged(routed, tmp_path) -> None:
    after = SiT.from_pretrained(fine_tune(tmp_path, routed, "start.trainable=lora", "start.lora_rank=2"))
    names = changed(SiT.from_pretrained(routed), after)
    adapted = {
        f"blocks.{i}.{layer}.weight" for i in (0, 1) for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    assert names == adapted | {"routing.queries.weight", "routing.queries.t_gate"}
    old = SiT.from_pretrained(routed).state_dict()
    for name in adapted:
        rank = torch.linalg.matrix_rank((after.state_dict()[name] - old[name]).double(), rtol=1e-4)
        assert 1 <= rank <= 2, name


def test_adapters_change_nothing_before_they_learn(routed) -> None:
    start = StartConfig(path=str(routed), trainable="lora", lora_rank=4)
    model, before = starting_model(TrainConfig("out", start=start), ClassLabels(3)), SiT.from_pretrained(routed)
    assert function_error(before, model) == (0, 0)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(learning) == 2 * 2 * 4 + 2 and all("lora_" in n or n.startswith("routing.") for n in learning)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    unmerged = [p.clone() for p in model(*sample(model))]
    merged = plain_model(model)
    assert {n for n, _ in merged.named_parameters()} == {n for n, _ in before.named_parameters()}
    torch.testing.assert_close(list(merged(*sample(merged))), unmerged, rtol=1e-4, atol=1e-5)


def sample(model: SiT) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x_t = torch.randn(2, *model.sample_shape, generator=torch.Generator().manual_seed(0))
    return x_t, torch.tensor([0.3, 0.8]), torch.tensor([0, 1])


def test_other_classes(routed, tmp_path) -> None:
    """Four new classes: two take rows over, by number and by name."""
    folder = tmp_path / "named"
    shutil.copytree(routed, folder)
    (folder / "classes.json").write_text('["a cat", "a dog"]')
    (folder / CHECKSUMS_FILE).unlink()  # which says that names were given on purpose
    (tmp_path / "map.json").write_text('{"lynx": "a cat", "3": 1}')
    new = ClassLabels(4, class_names=("wolf", "lynx", "fox", "ox"))

    def started(classes: str) -> SiT:
        model = starting_model(TrainConfig("out", start=StartConfig(path=str(folder), classes=classes)), new)
        assert isinstance(model, SiT) and model.config.num_classes == 4
        return model

    mapped, anew = started(str(tmp_path / "map.json")), started("reinitialise")
    before = SiT.from_pretrained(folder).state_dict()
    table = before["y_embedder.embedding_table.weight"]
    rows = mapped.y_embedder.embedding_table.weight.detach()
    assert torch.equal(rows[[1, 3, 4]], table[[0, 1, 2]]) and not torch.isin(rows[[0, 2]], table).any()
    assert torch.equal(anew.y_embedder.embedding_table.weight[4], table[2])
    assert condition_of(mapped) == ClassLabels(4, (1, 3)) and condition_of(anew) == ClassLabels(4, ())
    for name, value in mapped.state_dict().items():
        assert "y_embedder" in name or torch.equal(value, before[name]), name
    (tmp_path / "map.json").write_text('{"lynx": "a bird"}')
    with pytest.raises(UserError, match=r"map\.json: class 'a bird' is not known; the model has 2 classes: a cat"):
        started(str(tmp_path / "map.json"))
    with pytest.raises(UserError, match=r"neither reinitialise nor a JSON file that can be read"):
        started(str(tmp_path / "none.json"))
    with pytest.raises(UserError, match=r"start\.classes = reinitialise needs start\.path and start\.trainable = all"):
        StartConfig(path=str(folder), trainable="lora", classes="reinitialise")


def test_what_cannot_be_fine_tuned_is_refused(plain, routed, tmp_path, capsys) -> None:
    start = StartConfig(path=str(plain), trainable="routing")
    with pytest.raises(UserError, match="routing 'residual' has no parameters to train"):
        starting_model(TrainConfig("out", start=start), ClassLabels(3))
    with pytest.raises(UserError, match="either a section model"):
        TrainConfig("out", model=tiny_config(), start=replace(start, trainable="all"))
    with pytest.raises(UserError, match=r"start\.trainable = lora needs start\.path"):
        TrainConfig("out", model=tiny_config(), start=StartConfig(trainable="lora"))
    with pytest.raises(UserError, match=r"start\.lora_rank must be at least 1; got 0"):
        StartConfig(lora_rank=0)


def test_dry_run_counts_what_learns(routed, tmp_path, capsys) -> None:
    config = tmp_path / "fine_tune.yaml"
    config.write_text(f"output: {tmp_path / 'run'}\nstart: {{path: {routed}, trainable: routing}}\n")
    assert main(["train", str(config), "--dry-run"]) == 0
    out = capsys.readouterr().out
    # Five readers of width 16, a query and a gate each.
    assert re.search(r"teacher +160 of [\d,]+", out) and not (tmp_path / "run").exists()

"""Plans of stock transformers: what is counted, what public models weigh."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dar import RoutingConfig
from distill.config import LoopConfig, RolesConfig
from distill.errors import UserError
from distill.models import load_model
from distill.objectives import DmdConfig, FakeScoreConfig, RunConfig
from distill.planning import Launch, named_shape, plan_run, shape_in
from distill.planning.activations import Setting
from distill.planning.stock import NAMED, StockSubject
from distill.verbs.retrofit import StockOptions, retrofit
from tests.stock_folders import stock_folder

BLIND = DmdConfig(fake_score=FakeScoreConfig(knows_step=False))


@pytest.fixture(scope="module")
def small_stock() -> StockSubject:
    """Of SD3.5-medium's kind, routed."""
    subject = named_shape(["SD3.5-medium", "routing.chunk_size=2", "sample_shape=[16,16,16]", "text_tokens=20"])
    assert isinstance(subject, StockSubject)
    smaller = {"num_layers": 4, "num_attention_heads": 4, "caption_projection_dim": 256, "pos_embed_max_size": 8}
    return replace(subject, config={**subject.config, **smaller, "dual_attention_layers": ()})


def test_a_stock_transformer_is_counted_as_it_runs(small_stock: StockSubject) -> None:
    lora = Setting(product_bytes=2, trainable="lora", lora_rank=8)
    saved, checkpointed = (small_stock.saved(1, replace(lora, checkpointing=c))["activations"] for c in (False, True))
    backward = small_stock.backward(1, replace(lora, checkpointing=True))
    # One block is computed again at a time: were what is computed again kept, it would be nearly all.
    assert checkpointed < 0.3 * saved and checkpointed + backward < 0.4 * saved
    assert small_stock.saved(3, lora)["activations"] == 3 * saved
    work = small_stock.work(lora)
    assert 2 < work.update(lora) / work.forward < 3  # frozen weights have no gradient of their own
    assert small_stock.copies(lora) == 0


def test_the_plan_of_a_distillation_by_adapters(small_stock: StockSubject) -> None:
    """The base is held once, in bfloat16; roles add adapters in float32."""
    config = RunConfig(
        "out", roles=RolesConfig("lora", 8), train=LoopConfig(batch_size=2, mixed_precision="bf16"), objective=BLIND
    )
    plan = plan_run(config, small_stock, Launch())
    teacher, student, fake_score, _ = plan.roles
    assert teacher.weights == pytest.approx(2 * small_stock.num_parameters, rel=0.01)
    assert student.weights == fake_score.weights == 4 * student.trainable < 0.2 * teacher.weights
    sharded = plan_run(config, small_stock, Launch(2, "fsdp"))
    assert sharded.roles[0].weights == -(-teacher.weights // 2)


def test_public_stock_transformers_have_their_published_sizes() -> None:
    sizes = {name: subject.num_parameters / 1e9 for name, subject in NAMED.items()}
    assert sizes == pytest.approx({"SD3.5-medium": 2.24, "Qwen-Image": 20.43, "Wan2.1-T2V-1.3B": 1.42}, abs=0.01)


def test_a_folder_of_a_stock_transformer_is_planned_by_its_files(tmp_path: Path) -> None:
    model, prompts = stock_folder("sd3", tmp_path)
    options = StockOptions(str(prompts), sample_shape=(4, 8, 8))
    retrofit(model, tmp_path / "routed", RoutingConfig(scale="count", chunk_size=2), stock=options)
    subject = shape_in(str(tmp_path / "routed"), "teacher.path")
    assert isinstance(subject, StockSubject)
    loaded = load_model(tmp_path / "routed")
    assert subject.num_parameters == sum(parameter.numel() for parameter in loaded.parameters())
    assert (subject.sample_shape, subject.text_tokens, subject.sources) == ((4, 8, 8), 5, "differences")
    with pytest.raises(UserError, match="depth is not one of routing, sample_shape, text_tokens, sources"):
        named_shape(["Qwen-Image", "depth=3"])

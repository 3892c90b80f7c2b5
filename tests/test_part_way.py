"""A teacher that begins near the critic: what carries a share of what has been learnt, and where it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dar import SiT
from distill.config import RolesConfig, TeacherConfig
from distill.errors import UserError
from distill.models.part_way import PartWay
from distill.models.roles import trainable_copy
from tests.conftest import perturbed, tiny_config
from tests.test_more_objectives import member, samples_of, task_of, values

__all__ = ["values"]  # the fixture


def near(values: dict[str, Any], **settings: Any) -> dict[str, Any]:
    objective = {**values["objective"], "critic_share": 0.75, "critic_share_until": 4, **settings}
    return {**values, "roles": {"trainable": "lora", "lora_rank": 2}, "objective": objective}


def test_part_of_the_way_an_update_of_lora_counts_by_its_share() -> None:
    teacher = perturbed(SiT(tiny_config()))
    network: Any = trainable_copy(teacher, TeacherConfig(), RolesConfig("lora", lora_rank=2))
    between = PartWay(network)
    learnt = perturbed(network, seed=1, std=0.2)
    x_t, t, y = torch.randn(4, 1, 8, 8), torch.rand(4), torch.arange(4) % 3

    assert torch.equal(between(x_t, t, y), teacher(x_t, t, y))
    between.go(1)
    assert torch.allclose(between(x_t, t, y), learnt(x_t, t, y), atol=1e-6)
    between.go(0.25)
    found = between(x_t, t, y)
    with torch.no_grad():  # W + 0.25 B A, and the routing a quarter of its way
        for module in network.modules():
            for name, scale in getattr(module, "scaling", {}).items():
                module.scaling[name] = 0.25 * scale
        began = dict(teacher.routing.named_parameters())
        for name, now in network.routing.modules_to_save["default"].named_parameters():
            now.copy_(0.75 * began[name] + 0.25 * now)
        assert torch.allclose(found, network(x_t, t, y), atol=1e-6)
        assert not torch.allclose(found, teacher(x_t, t, y), atol=1e-3)


def test_the_teacher_of_the_loss_leaves_the_critic_by_a_cosine(values: dict[str, Any]) -> None:
    task = task_of(near(values))
    dmd, (samples, t, eps) = member(task, "dmd"), samples_of(task)
    true = task.objective.setting.teacher
    shares = []
    for step in range(5):
        task.update(step)
        shares.append(float(dmd.between._share))
    assert shares == pytest.approx([0.75, 0.64017, 0.375, 0.10983, 0.0], abs=1e-4)
    x_t = (1 - t.view(-1, 1, 1, 1)) * samples.x0 + t.view(-1, 1, 1, 1) * eps
    with torch.no_grad():
        expected = true.x0(x_t, t, samples.y)
        assert torch.equal(dmd.estimates(samples, t, eps)[0], expected)
        dmd.between.go(0.75)
        assert not torch.allclose(dmd.estimates(samples, t, eps)[0], expected, atol=1e-6)


def test_what_was_learnt_before_a_resume_is_not_where_it_began(values: dict[str, Any], tmp_path: Path) -> None:
    task = task_of(near(values))
    task.update(0)
    task.accelerator.save_state(str(tmp_path / "state"))
    resumed = task_of(near(values))
    resumed.accelerator.load_state(str(tmp_path / "state"))
    one, other = (member(each, "dmd").between for each in (task, resumed))
    assert one._began and all(torch.equal(one._began[name], other._began[name]) for name in one._began)


def test_it_needs_roles_that_are_lora(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^objective.critic_share = 0.75 needs roles.trainable = lora; got all$"):
        task_of({**near(values), "roles": {"trainable": "all"}})
    with pytest.raises(UserError, match=r"objective.critic_share must lie in \[0, 1\]; got 2"):
        task_of(near(values, critic_share=2))

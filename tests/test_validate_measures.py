"""A small version of `scripts/validate_measures.py`: faults of textures, and which measures they move which way."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn.functional import interpolate

SCRIPTS = Path(__file__).parents[1] / "scripts"
FAULTS = ("blur", "grain", "blur and grain", "grid of 4", "contrast", "phases scrambled", "collapse")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("validate_measures", SCRIPTS / "validate_measures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "validate_measures", module)
    spec.loader.exec_module(module)
    one = {name: module.Fault(module.FAULTS[name].apply, module.FAULTS[name].strengths[2:3]) for name in FAULTS}
    monkeypatch.setattr(module, "FAULTS", one)
    return module


def squares(num: int, seed: int, first: int = 0) -> torch.Tensor:
    """Pixels first, .., first + 39 of patches of colour with sharp borders, and a little texture."""
    generator = torch.Generator().manual_seed(seed)
    coarse = interpolate(torch.randn(num, 3, 6, 6, generator=generator), size=(54, 54), mode="nearest")
    places = torch.randint(13, (num, 2), generator=generator).tolist()  # no grid stands still
    shapes = torch.stack([image[:, i : i + 41, j : j + 41] for image, (i, j) in zip(coarse, places, strict=True)])
    images = 0.4 * shapes + 0.02 * torch.randn(num, 3, 41, 41, generator=generator)
    return images.clamp(-1, 1)[:, :, first : first + 40, first : first + 40]


def test_faults_move_what_they_should(script: ModuleType) -> None:
    labels = torch.arange(80) % 4
    pictures = script.Pictures(squares(80, 0), labels, squares(80, 1), labels, squares(160, 2), labels.repeat(2))
    found = {
        fault: {name: one.changes[0] for name, one in measures.items()}
        for fault, measures in script.validate(pictures, squares(80, 0, first=1), embedded=False).items()
    }
    assert found["blur"]["edge_width"] > 5 and found["blur"]["high_frequency_ratio"] < -5
    assert found["grain"]["grain"] > 5 and found["grain"]["sparsity_fine"] > 5
    both = found["blur and grain"]
    assert both["edge_width"] > 5 and both["grain"] > 5 and abs(both["high_frequency_ratio"]) < 10
    assert found["grid of 4"]["grid"] > 3 and found["contrast"]["contrast"] < -2
    assert found["phases scrambled"]["sparsity_fine"] > 5
    paired = {"lpips_to_teacher", "ssim_to_teacher", "ms_ssim_to_teacher", "edge_f_score", "low_frequency_psnr"}
    for same in ("other pictures", script.SHIFT):
        assert all(abs(change) < 4 for name, change in found[same].items() if name not in paired), found[same]

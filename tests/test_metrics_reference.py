"""Reference statistics on disk, and the table of measures made with them."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

from distill.metrics import (
    MEASURES,
    ReferenceStatistics,
    data_values,
    edge_density,
    frechet_distance,
    frechet_statistics,
    gradient_distance,
    high_frequency_ratio,
    kid,
    load_extractor,
    measure,
    patch_peak,
    reference_from_images,
    register_measure,
    spectral_distance,
)
from distill.metrics.features import Features
from distill.metrics.perceptual import EmbeddedLpips


def pictures(num_images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Bright noisy squares on black; the class is the size of the square."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_images) % 10
    images = torch.full((num_images, 1, 28, 28), -1.0)
    for image, label in zip(images, labels, strict=True):
        side = 8 + 2 * int(label)
        image[0, :side, :side] = torch.rand(side, side, generator=generator)
    return images, labels


@pytest.fixture(scope="module")
def extractor():
    return load_extractor("embedded")


@pytest.fixture(scope="module")
def reference(extractor):
    return reference_from_images(*pictures(80, seed=0), extractor, "squares", perceptual=EmbeddedLpips(extractor))


def test_roundtrip_keeps_every_field(reference, tmp_path):
    path = tmp_path / "new" / "reference.npz"
    reference.save(path)
    again = ReferenceStatistics.load(path)
    for field in fields(reference):
        before, after = getattr(reference, field.name), getattr(again, field.name)
        if isinstance(before, np.ndarray):
            assert before.dtype == after.dtype
            np.testing.assert_array_equal(before, after)
        else:
            assert before == after and type(before) is type(after)
    assert [path.name for path in path.parent.iterdir()] == ["reference.npz"]


def test_statistics_are_of_the_unrounded_features(reference, extractor):
    images, _ = pictures(80, seed=0)
    exact = frechet_statistics(extractor.extract(images).features)
    np.testing.assert_array_equal(reference.mu, exact.mu)
    assert reference.features.dtype == np.float16
    assert frechet_distance(reference.frechet(), exact) < 1e-6


@pytest.mark.parametrize("damage", ["cut", "text", "flipped", "empty"])
def test_damaged_file(reference, tmp_path, damage):
    path = tmp_path / "reference.npz"
    reference.save(path)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 50] = bytes(byte ^ 255 for byte in content[middle : middle + 50])
    path.write_bytes({"cut": content[: len(content) // 3], "text": b"hello", "flipped": content, "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"reference\.npz is damaged"):
        ReferenceStatistics.load(path)


def entries(path):
    with np.load(path) as file:
        return dict(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": np.asarray(99)}, "format 99; this version reads 1"),
        ({"mu": None}, "lacks or adds: mu"),
        ({"edge_share": np.zeros(3)}, "edge_share has shape"),
        ({"sigma": np.full((64, 64), np.nan)}, "sigma holds nan"),
        ({"source": np.array([{}], dtype=object)}, "damaged"),
    ],
)
def test_wrong_content(reference, tmp_path, change, message):
    path = tmp_path / "reference.npz"
    reference.save(path)
    content = {name: value for name, value in {**entries(path), **change}.items() if value is not None}
    np.savez(path, **content)
    with pytest.raises(ValueError, match=message):
        ReferenceStatistics.load(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz"):
        ReferenceStatistics.load(tmp_path / "nowhere.npz")


def test_a_failed_save_leaves_the_old_file(reference, tmp_path, monkeypatch):
    path = tmp_path / "reference.npz"
    reference.save(path)

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        replace(reference, source="other").save(path)
    assert ReferenceStatistics.load(path).source == "squares"
    assert [path.name for path in tmp_path.iterdir()] == ["reference.npz"]


@pytest.fixture(scope="module")
def measured(reference, extractor):
    images, labels = pictures(60, seed=1)
    teacher_images, teacher_labels = pictures(50, seed=2)
    blurred = avg_pool2d(images, 3, 1, padding=1)
    teacher = reference_from_images(teacher_images, teacher_labels, extractor, "teacher")
    return measure(
        blurred,
        labels,
        data=reference,
        teacher=teacher,
        extractor=extractor,
        lpips=EmbeddedLpips(extractor),
        patch_size=7,
        paired_to=images[:40],
        num_bootstrap=60,
    )


def test_table_has_every_measure_in_order(measured):
    assert list(measured) == list(MEASURES)
    for name, interval in measured.items():
        if MEASURES[name].has_interval:
            assert interval.low <= interval.value <= interval.high > interval.low, name
        else:
            assert math.isnan(interval.low) and math.isnan(interval.high), name


def test_table_agrees_with_the_functions(measured, reference, extractor):
    images, labels = pictures(60, seed=1)
    blurred = avg_pool2d(images, 3, 1, padding=1)
    data, _ = pictures(80, seed=0)
    teacher, _ = pictures(50, seed=2)
    extracted = extractor.extract(blurred)
    statistics = frechet_statistics(extracted.features)
    stored = torch.from_numpy(reference.features).float()
    expected = {
        "kid": 1000 * kid(extracted.features, stored).value,
        "frechet": frechet_distance(statistics, reference.frechet()),
        "frechet_teacher": frechet_distance(statistics, frechet_statistics(extractor.extract(teacher).features)),
        "class_agreement": (extracted.logits.argmax(1) == labels).float().mean().item(),
        "high_frequency_ratio": high_frequency_ratio(blurred),
        "spectral_distance_data": spectral_distance(blurred, data),
        "spectral_distance_teacher": spectral_distance(blurred, teacher),
        "patch_peak": patch_peak(blurred, 7),
        "edge_density": edge_density(blurred),
        "gradient_distance_data": gradient_distance(blurred, data),
        "lpips_to_teacher": EmbeddedLpips(extractor).distance(blurred[:40], images[:40]).mean().item(),
    }
    assert {name: measured[name].value for name in expected} == pytest.approx(expected, rel=1e-4)
    assert expected["frechet"] != pytest.approx(expected["frechet_teacher"], rel=1e-3)


def test_data_values_are_those_of_the_images(reference):
    images, _ = pictures(80, seed=0)
    values = data_values(reference, 7)
    expected = {
        "high_frequency_ratio": high_frequency_ratio(images),
        "patch_peak": patch_peak(images, 7),
        "edge_density": edge_density(images),
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert {"class_agreement", "lpips_diversity"} <= set(values)
    missing = data_values(replace(reference, diversity=math.nan, axis_power=np.zeros((2, 0))), 7)
    assert "lpips_diversity" not in missing and "patch_peak" not in missing


@pytest.mark.parametrize(("patch_size", "num_images"), [(1, 12), (28, 12), (7, 12)])
def test_what_a_model_or_so_few_images_lack_is_left_out(reference, extractor, patch_size, num_images):
    images, labels = pictures(num_images, seed=1)  # of 12 images two classes of ten have a pair
    lpips = EmbeddedLpips(extractor)
    found = measure(images, labels, data=reference, extractor=extractor, lpips=lpips, patch_size=patch_size,
                    num_bootstrap=4)  # fmt: skip
    assert ("patch_peak" in found) == ("patch_peak" in data_values(reference, patch_size)) == (patch_size == 7)
    assert "lpips_diversity" in found and "frechet" in found
    few = measure(images[:10], labels[:10], data=reference, extractor=extractor, lpips=lpips, patch_size=7,
                  num_bootstrap=4)  # fmt: skip
    assert "lpips_diversity" not in few and "frechet" in few
    stored = reference_from_images(images[:10], labels[:10], extractor, "few", perceptual=lpips)
    assert math.isnan(stored.diversity) and "lpips_diversity" not in data_values(stored, 7)


class WithoutLogits:
    """An extractor as Inception is: features only."""

    name, version, feature_dim = "plain", "1", 49

    def extract(self, images, batch_size=250):
        return Features(avg_pool2d(images, 4).flatten(1), None)


def test_what_cannot_be_measured_is_left_out():
    images, labels = pictures(40, seed=0)
    reference = reference_from_images(images, labels, WithoutLogits(), "squares")
    found = measure(images, labels, data=reference, extractor=WithoutLogits(), patch_size=7, num_bootstrap=10)
    absent = set(MEASURES) - set(found)
    assert absent == {
        "frechet_teacher",
        "class_agreement",
        "spectral_distance_teacher",
        "lpips_diversity",
        "lpips_to_teacher",
    }
    assert found["frechet"].value < 1e-6 and found["spectral_distance_data"].value < 1e-5
    assert "class_agreement" not in data_values(reference, 7)


def test_half_of_the_classes_are_believable_but_cover_half():
    images, labels = pictures(80, seed=0)
    reference = reference_from_images(images, labels, WithoutLogits(), "squares")
    half = labels < 5
    found = measure(
        images[half], labels[half], data=reference, extractor=WithoutLogits(), patch_size=7, num_bootstrap=10
    )
    assert found["precision"].value == 1
    assert found["recall"].value == pytest.approx(0.5, abs=0.1)


def test_mistakes_are_named(reference, extractor):
    images, labels = pictures(20, seed=0)
    arguments = {"data": reference, "extractor": extractor, "patch_size": 7}
    with pytest.raises(ValueError, match=r"1 image\(s\) given; at least 4"):
        measure(images[:1], labels[:1], **arguments)
    with pytest.raises(ValueError, match="labels"):
        measure(images, labels[:-1], **arguments)
    with pytest.raises(ValueError, match="paired_to"):
        measure(images[:-1], labels[:-1], paired_to=images, **arguments)
    with pytest.raises(ValueError, match="'squares' were made with the extractor embedded-"):
        measure(images, labels, data=reference, extractor=WithoutLogits(), patch_size=7)
    with pytest.raises(ValueError, match=r"are of images \[1, 28, 28\], not \[1, 14, 14\]"):
        measure(avg_pool2d(images, 2), labels, **arguments)
    with pytest.raises(ValueError, match="at least 4"):
        reference_from_images(images[:3], labels[:3], extractor, "few")
    with pytest.raises(ValueError, match="already"):
        register_measure("twice", ideal="lower", explanation="")(MEASURES["frechet"].compute)

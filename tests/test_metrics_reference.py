"""Reference statistics on disk, and the table of measures made with them."""

import math
from dataclasses import astuple, fields, replace

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

from distill.metrics import (
    MEASURES,
    ReferenceStatistics,
    data_values,
    frechet_distance,
    frechet_interval,
    frechet_statistics,
    half_values,
    high_frequency_share,
    kid,
    load_extractor,
    measure,
    published,
    reference_from_images,
    register_measure,
    sets,
)
from distill.metrics.edges import edge_width, edge_widths, gradient_distance, gradient_histogram
from distill.metrics.features import Features
from distill.metrics.perceptual import EmbeddedLpips
from distill.metrics.published import is_published, published_reference
from distill.metrics.spectrum import rings, spectral_distance


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
        elif isinstance(before, dict):
            assert before.keys() == after.keys()
            assert all(np.array_equal(before[name], after[name], equal_nan=True) for name in before)
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
        ({"format": np.asarray(99)}, r"format 99, this version reads 2: make it anew, dar-distill statistics DATA"),
        ({"mu": None}, "lacks or adds: mu"),
        ({"tables.rings": np.zeros(3)}, "rings has shape"),
        ({"tables.steps": None}, "lacks or adds steps: make it anew"),
        ({"sigma": np.full((64, 64), np.nan)}, "sigma holds nan"),
        ({"source": np.array([{}], dtype=object)}, "damaged"),
        ({"diversity": np.zeros(3)}, "diversity is of the wrong kind"),
        ({"num_images": np.array("many")}, "num_images is of the wrong kind"),
        ({"image_shape": np.array(["a", "b", "c"])}, "image_shape is of the wrong kind"),
        ({"moments.patch_mu": np.zeros(3)}, r"reference\.npz: patch: mu and sigma have shapes \(3,\) and \("),
        ({"moments.patch_mu": np.zeros(())}, r"reference\.npz: patch: mu and sigma have shapes \(\) and \("),
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
        paired_to=images[:40],
        num_bootstrap=60,
    )


def test_table_has_every_measure_in_order(measured):
    absent = {"spatial_frechet", "patch_frechet", "inception_score", "colourfulness", "flicker", "motion"}
    assert list(measured) == [name for name in MEASURES if name not in absent]
    for name, interval in measured.items():
        if MEASURES[name].has_interval:
            assert interval.low <= interval.value <= interval.high > interval.low, name
        else:
            assert math.isnan(interval.low) and math.isnan(interval.high), name


def mean(table, images):
    return table(images).double().mean(0)


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
        "high_frequency_ratio": high_frequency_share(blurred),
        "spectral_distance_data": spectral_distance(mean(rings, blurred), mean(rings, data)),
        "spectral_distance_teacher": spectral_distance(mean(rings, blurred), mean(rings, teacher)),
        "edge_width": edge_width(mean(edge_widths, blurred)),
        "gradient_distance_data": gradient_distance(mean(gradient_histogram, blurred), mean(gradient_histogram, data)),
        "lpips_to_teacher": EmbeddedLpips(extractor).distance(blurred[:40], images[:40]).mean().item(),
    }
    assert {name: measured[name].value for name in expected} == pytest.approx(expected, rel=1e-4)
    at_most = frechet_interval(extracted.features, reference.frechet(), num_resamples=50)  # each takes milliseconds
    assert astuple(measured["frechet"]) == pytest.approx(astuple(at_most))
    assert expected["frechet"] != pytest.approx(expected["frechet_teacher"], rel=1e-3)


def test_data_values_are_those_of_the_images(reference):
    images, _ = pictures(80, seed=0)
    values, halves = data_values(reference), half_values(reference)
    assert values["high_frequency_ratio"] == pytest.approx(high_frequency_share(images), rel=1e-5)
    assert values["edge_width"] == pytest.approx(edge_width(mean(edge_widths, images)), rel=1e-5)
    assert halves["edge_width"] == pytest.approx(edge_width(mean(edge_widths, images[1::2])), rel=1e-5)
    first, second = (mean(rings, images[i::2]) for i in (0, 1))
    assert halves["spectral_distance_data"] == pytest.approx(spectral_distance(second, first), rel=1e-5)
    features = torch.from_numpy(reference.features).float()
    expected = frechet_distance(*(frechet_statistics(features[i::2]) for i in (0, 1)))
    assert halves["frechet"] == pytest.approx(expected)
    assert halves["kid"] == pytest.approx(1000 * kid(features[1::2], features[::2]).value)
    assert {"class_agreement", "lpips_diversity"} <= set(values)
    assert "lpips_diversity" not in data_values(replace(reference, diversity=math.nan))


def test_what_so_few_images_lack_is_left_out(reference, extractor):
    images, labels = pictures(12, seed=1)  # of 12 images two classes of ten have a pair
    lpips = EmbeddedLpips(extractor)
    found = measure(images, labels, data=reference, extractor=extractor, lpips=lpips, num_bootstrap=4)
    assert "lpips_diversity" in found and "frechet" in found
    resampled = frechet_interval(extractor.extract(images).features, reference.frechet(), num_resamples=4)
    assert astuple(found["frechet"]) == pytest.approx(astuple(resampled))
    few = measure(images[:10], labels[:10], data=reference, extractor=extractor, lpips=lpips, num_bootstrap=4)
    assert "lpips_diversity" not in few and "frechet" in few
    stored = reference_from_images(images[:10], labels[:10], extractor, "few", perceptual=lpips)
    assert math.isnan(stored.diversity) and "lpips_diversity" not in data_values(stored)


class WithoutLogits:
    """An extractor as Inception is: features only."""

    name, version, feature_dim = "plain", "1", 49

    def reads(self, image_shape):
        return True

    def extract(self, images, batch_size=250):
        return Features(avg_pool2d(images, 4).flatten(1))


def test_what_cannot_be_measured_is_left_out():
    images, labels = pictures(40, seed=0)
    reference = reference_from_images(images, labels, WithoutLogits(), "squares")
    found = measure(images, labels, data=reference, extractor=WithoutLogits(), num_bootstrap=10)
    absent = set(MEASURES) - set(found)
    assert absent == {
        "frechet_teacher",
        "class_agreement",
        "spectral_distance_teacher",
        "lpips_diversity",
        "spatial_frechet",
        "patch_frechet",
        "inception_score",
        "colourfulness",
        *(name for name, entry in MEASURES.items() if entry.kind in ("time", "paired")),
    }
    assert found["frechet"].value < 1e-6 and found["spectral_distance_data"].value < 1e-5
    assert "class_agreement" not in data_values(reference)


def test_half_of_the_classes_are_believable_but_cover_half():
    images, labels = pictures(80, seed=0)
    reference = reference_from_images(images, labels, WithoutLogits(), "squares")
    half = labels < 5
    found = measure(images[half], labels[half], data=reference, extractor=WithoutLogits(), num_bootstrap=10)
    assert found["precision"].value == 1
    assert found["recall"].value == pytest.approx(0.5, abs=0.1)


def test_mistakes_are_named(reference, extractor):
    images, labels = pictures(20, seed=0)
    arguments = {"data": reference, "extractor": extractor}
    with pytest.raises(ValueError, match=r"1 image\(s\) given; at least 4"):
        measure(images[:1], labels[:1], **arguments)
    with pytest.raises(ValueError, match="labels"):
        measure(images, labels[:-1], **arguments)
    with pytest.raises(ValueError, match="paired_to"):
        measure(images[:-1], labels[:-1], paired_to=images, **arguments)
    with pytest.raises(ValueError, match="'squares' were made with the extractor embedded-"):
        measure(images, labels, data=reference, extractor=WithoutLogits())
    with pytest.raises(ValueError, match=r"are of images \[1, 28, 28\], not \[1, 14, 14\]"):
        measure(avg_pool2d(images, 2), labels, **arguments)
    with pytest.raises(ValueError, match="at least 4"):
        reference_from_images(images[:3], labels[:3], extractor, "few")
    with pytest.raises(ValueError, match="already"):
        register_measure("sets", "twice", ideal="lower", explanation="")(MEASURES["frechet"].compute)


class LikeInception(WithoutLogits):
    """With what Inception has beside its features; reads any size."""

    def extract(self, images, batch_size=250):
        features = avg_pool2d(images, images.shape[-1] // 4).flatten(1)
        logits = 20 * torch.nn.functional.one_hot(torch.arange(len(images)) % 5, 1008).float()
        return Features(features, inception_logits=logits, spatial=images[:, 0, 0, :6])


def test_what_inception_adds(monkeypatch):
    monkeypatch.setattr(sets, "SCORE_PARTS", 1)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(60, 3, 128, 128, generator=generator)
    labels = torch.zeros(60, dtype=torch.long)
    reference = reference_from_images(images, labels, LikeInception(), "noise")
    found = measure(0.9 * images, labels, data=reference, extractor=LikeInception(), num_bootstrap=4)
    spatial = [frechet_statistics(scale * images[:, 0, 0, :6]) for scale in (0.9, 1)]
    assert found["spatial_frechet"].value == pytest.approx(frechet_distance(*spatial), rel=1e-4)
    assert found["patch_frechet"].value > 0.01
    assert found["inception_score"].value == pytest.approx(5, rel=1e-3)
    without = reference.without_features()
    assert "patch_frechet" not in measure(images, labels, data=without, extractor=None, num_bootstrap=0)


class NamedInception(LikeInception):
    name, feature_dim = "inception", 48


def test_statistics_that_others_published(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "INCEPTION_DIM", 48)
    rng = np.random.default_rng(0)
    mu, sigma, images = rng.normal(size=48), np.eye(48), rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    spatial = {"mu_s": rng.normal(size=6), "sigma_s": np.eye(6)}
    np.savez(tmp_path / "adm.npz", mu=mu, sigma=sigma, arr_0=images, **spatial)
    np.savez(tmp_path / "fid.npz", mu=mu, sigma=sigma, mu_s=spatial["mu_s"])
    assert is_published(tmp_path / "adm.npz") and is_published(tmp_path / "fid.npz") and is_published(tmp_path / "a.pt")
    adm, fid = (published_reference(tmp_path / name, NamedInception(), None) for name in ("adm.npz", "fid.npz"))
    for found in (adm, fid):
        assert np.array_equal(found.mu, mu) and np.array_equal(found.sigma, sigma)
        assert found.extractor == "inception-1" and found.frechet() is not None
    assert np.array_equal(adm.moments["spatial_mu"], spatial["mu_s"]) and adm.source == "adm.npz, 8 images"
    assert adm.mean("mean_colour").tolist() == pytest.approx(images.mean((0, 1, 2)) / 127.5 - 1, abs=1e-4)
    assert (adm.num_images, adm.has_images, adm.image_shape) == (8, True, (3, 32, 32))
    assert (fid.num_images, fid.has_images, fid.moments, fid.source) == (0, False, {}, "fid.npz")
    assert fid.features.shape == (0, 48) and not data_values(fid)
    for name in ("adm.npz", "fid.npz"):  # of no use to another extractor
        other = published_reference(tmp_path / name, None, None)
        assert other.frechet() is None and other.mu.size == 0 and other.extractor == "" and not other.moments
    for damaged, message in (
        ({"sigma_s": np.eye(5)}, r"adm\.npz: of sFID: mu and sigma have shapes \(6,\) and \(5, 5\)"),
        ({"mu_s": np.array(["a"] * 6)}, r"adm\.npz holds no mu_s and sigma_s of features: "),
    ):
        np.savez(tmp_path / "adm.npz", **{"mu": mu, "sigma": sigma, **spatial, **damaged})
        with pytest.raises(ValueError, match=message):
            published_reference(tmp_path / "adm.npz", NamedInception(), None)
    np.savez(tmp_path / "half.npz", mu=mu)
    assert not is_published(tmp_path / "half.npz") and not is_published(tmp_path / "nowhere.npz")


def test_dinov2_reads_a_folder_and_never_code(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=224, patch_size=56
    )
    transformers.Dinov2Model(shape).save_pretrained(tmp_path / "dino")
    dino = load_extractor("dinov2", tmp_path / "dino")
    images, _ = pictures(6, seed=0)
    features = dino.extract(images, batch_size=4).features
    assert features.shape == (6, 16) and dino.feature_dim == 16 and len(dino.version) == 8
    patches = dino.tokens(images)  # the features are the class token's, which is none of these
    assert patches.shape == (6, 16, 16) and (patches - features[:, None]).abs().amax(-1).min() > 1e-3
    torch.testing.assert_close(
        dino.extract(images[:1].expand(-1, 3, -1, -1)).features, features[:1], rtol=1e-4, atol=1e-5
    )
    for shape, message in (((6, 28, 28), "must be"), ((6, 2, 28, 28), "2 channels; DINOv2 reads 1 or 3")):
        with pytest.raises(ValueError, match=message):
            dino.extract(torch.zeros(shape))
    with pytest.raises(FileNotFoundError, match=r"DINOv2 is not at .*nowhere"):
        load_extractor("dinov2", tmp_path / "nowhere", offline=True)

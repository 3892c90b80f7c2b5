"""The extractors, and LPIPS with its stand-in."""

import socket
from pathlib import Path

import lpips
import pytest
import torch

from dar.checksums import checksum
from distill.metrics.bootstrap import bootstrap_mean
from distill.metrics.classifier import Classifier, ClassifierConfig
from distill.metrics.features import INCEPTION_FILE, EmbeddedExtractor, InceptionExtractor, load_extractor
from distill.metrics.perceptual import (
    AlexNetLpips,
    EmbeddedLpips,
    class_diversity,
    load_perceptual,
    pairs_within_classes,
)
from distill.metrics.weights import OFFLINE, cache_path, published_weights


@pytest.fixture(scope="module")
def extractor():
    return load_extractor("embedded")


@pytest.fixture
def empty_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def pictures(num_images: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(num_images, 1, 28, 28, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_shipped_extractor_gives_64_features_of_each_image_alone(extractor):
    images = pictures(7)
    whole = extractor.extract(images)
    assert whole.features.shape == (7, 64) and whole.logits is not None and whole.logits.shape == (7, 10)
    parts = extractor.extract(images, batch_size=3)
    torch.testing.assert_close(parts.features, whole.features)
    assert extractor.extract(images[2:3]).features == pytest.approx(whole.features[2:3], abs=1e-5)


def test_scaling_the_features_keeps_the_logits():
    torch.manual_seed(0)
    model = Classifier(ClassifierConfig()).eval()
    with torch.no_grad():
        features, logits = model(pictures(5))
        model.scale_features(0.3)
        scaled, same = model(pictures(5))
    torch.testing.assert_close(scaled, 0.3 * features)
    torch.testing.assert_close(same, logits)


def test_classifier_folder_roundtrip_and_version(tmp_path):
    torch.manual_seed(0)
    model = Classifier(ClassifierConfig(widths=(4, 8), feature_dim=6)).eval()
    for _ in range(2):  # the second replaces the first
        model.save_pretrained(tmp_path / "extractor", card="a card")
    again = load_extractor("embedded", tmp_path / "extractor")
    torch.testing.assert_close(again.extract(pictures(3)).features, model(pictures(3))[0].detach())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["extractor"]
    assert (tmp_path / "extractor" / "model.safetensors").stat().st_mode & 0o777 == 0o644  # others may read it
    assert not Classifier.from_pretrained(tmp_path / "extractor").training
    assert not any(parameter.requires_grad for parameter in again.model.parameters())
    assert again.version == EmbeddedExtractor(model).version
    model.scale_features(2)
    assert again.version != EmbeddedExtractor(model).version


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"widths": ()}, "at least one positive"),
        ({"widths": (4, 0)}, "at least one positive"),
        ({"feature_dim": 0}, "feature_dim is 0"),
        ({"image_size": 3.5}, "image_size is 3.5"),
        ({"image_size": 7}, "3 halvings leave nothing of image_size 7"),
    ],
)
def test_shapes_that_no_classifier_has(shape, message):
    assert ClassifierConfig(image_size=8, widths=(1, 1, 1), feature_dim=1).widths == (1, 1, 1)
    with pytest.raises(ValueError, match=message):
        ClassifierConfig(**shape)


def test_damaged_classifier_folder(tmp_path):
    Classifier(ClassifierConfig()).save_pretrained(tmp_path / "extractor", card="")
    weights = tmp_path / "extractor" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_extractor("embedded", tmp_path / "extractor")
    Classifier(ClassifierConfig(feature_dim=32)).save_pretrained(tmp_path / "other", card="")
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"does not fit config\.json"):
        load_extractor("embedded", tmp_path / "other")


def test_unknown_extractor_lists_the_names():
    with pytest.raises(ValueError, match=r"'vgg'; there are embedded, inception"):
        load_extractor("vgg")


def test_missing_inception_names_its_file_and_where_it_is(empty_hub):
    with pytest.raises(FileNotFoundError, match=rf"{INCEPTION_FILE} .* get it from https://"):
        load_extractor("inception")


def test_a_file_is_downloaded_once_and_only_as_it_was_published(tmp_path, monkeypatch):
    monkeypatch.delenv(OFFLINE)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "new" / "hub"))
    for name in ("first", "second"):  # into a folder that is made, and into one that is there
        source = tmp_path / name
        source.write_text(name)
        sha256 = checksum(source)
        with pytest.raises(FileNotFoundError, match=f"{name} could not be downloaded .*invalid hash value"):
            published_weights(source.as_uri(), sha256="0" + sha256)
        assert not cache_path(source.as_uri()).exists()
        path = published_weights(source.as_uri(), sha256=sha256[:8])
        source.unlink()
        assert published_weights(source.as_uri(), sha256=sha256[:8]) == path and path.read_text() == name
    assert socket.getdefaulttimeout() is None


def test_only_the_published_inception_file_is_unpickled(tmp_path):
    weights = tmp_path / INCEPTION_FILE
    weights.write_bytes(b"anything")
    with pytest.raises(ValueError, match="SHA-256 begins"):
        load_extractor("inception", weights)


def test_inception_sees_three_channels_in_8_bits():
    seen = []
    extractor = InceptionExtractor.__new__(InceptionExtractor)
    extractor.device, extractor._spatial = torch.device("cpu"), []

    def model(pixels):
        seen.append(pixels)
        extractor._spatial.append(pixels[:, 0, 0, :2].float())
        return pixels[:, :, 0, 0].float(), pixels[:, :1, 0, 1].float()

    extractor.model = model
    grey = torch.tensor([-1.5, -1, -0.996, 0, 0.999, 1.5]).view(3, 1, 1, 2).repeat(1, 1, 4, 2)
    found = extractor.extract(grey, batch_size=2)
    expected = torch.tensor([[0, 0], [1, 128], [255, 255]])  # 127.5 is rounded to the even
    assert [part.shape for part in seen] == [(2, 3, 4, 4), (1, 3, 4, 4)] and seen[0].dtype == torch.uint8
    assert torch.equal(found.features, expected[:, :1].expand(3, 3).float())
    assert torch.equal(found.inception_logits, expected[:, 1:].float()) and torch.equal(found.spatial, expected.float())
    assert len(extractor.extract(grey).spatial) == 3  # nothing is left of the last call
    with pytest.raises(ValueError, match="2 channels; Inception reads 1 or 3"):
        extractor.extract(torch.zeros(4, 2, 8, 8))
    assert [extractor.reads((channels, 8, 8)) for channels in (1, 2, 3, 4)] == [True, False, True, False]


@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (2, 1, 32, 32)])
def test_embedded_extractor_refuses_other_images(extractor, shape):
    with pytest.raises(ValueError, match=r"a batch of \[1, 28, 28\]"):
        extractor.extract(torch.zeros(shape))


def test_stand_in_is_named_and_chosen_where_alexnet_is_missing(extractor, empty_hub):
    found = load_perceptual((1, 28, 28), extractor)
    assert found is not None and found.name == "lpips stand-in (embedded classifier features)"
    assert isinstance(found, EmbeddedLpips)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 32, 32), (3, 28, 28)])
def test_there_is_no_distance_where_the_stand_in_reads_no_such_images(extractor, empty_hub, shape):
    with pytest.raises(FileNotFoundError, match=r"alexnet-owt-7be5be79\.pth .* get it from https://"):
        load_perceptual(shape, extractor)


def test_stand_in_of_an_own_classifier_reads_its_images(empty_hub):
    own = EmbeddedExtractor(Classifier(ClassifierConfig(image_size=32, in_channels=3)))
    found = load_perceptual((3, 32, 32), own)
    assert found is not None and found.distance(torch.zeros(2, 3, 32, 32), torch.ones(2, 3, 32, 32)).shape == (2,)


def test_stand_in_is_the_lpips_construction(extractor):
    a, b = pictures(5), pictures(5, seed=1)
    expected = torch.zeros(5)
    for map_a, map_b in zip(extractor.feature_maps(a), extractor.feature_maps(b), strict=True):
        difference = (lpips.normalize_tensor(map_a) - lpips.normalize_tensor(map_b)).square()
        expected += lpips.spatial_average(difference.sum(1, keepdim=True)).flatten()
    torch.testing.assert_close(EmbeddedLpips(extractor).distance(a, b, batch_size=2), expected)


def test_stand_in_grows_with_noise_and_is_nil_on_equal_images(extractor):
    perceptual, images = EmbeddedLpips(extractor), torch.zeros(4, 1, 28, 28)
    images[..., 8:20, 8:20] = 1
    distances = [perceptual.distance(images, images + s * pictures(4)).mean() for s in (0, 0.1, 0.5)]
    assert distances[0] == 0 < distances[1] < distances[2]


@pytest.fixture
def alexnet(empty_hub):
    """A file as torchvision names it, with random weights."""
    from torchvision.models import alexnet

    torch.manual_seed(0)
    model = alexnet(weights=None)
    features = {key: value for key, value in model.state_dict().items() if key.startswith("features.")}
    torch.save(features, empty_hub / "alexnet-owt-7be5be79.pth")
    return model


def test_alexnet_in_the_cache_is_used_with_its_weights(alexnet):
    perceptual = load_perceptual((1, 28, 28))
    assert isinstance(perceptual, AlexNetLpips) and perceptual.name == "LPIPS (AlexNet)"
    loaded = perceptual.model.net.get_parameter("slice3.6.weight")
    torch.testing.assert_close(loaded, alexnet.get_parameter("features.6.weight"), check_stride=False)
    a, b = pictures(3), pictures(3, seed=1)
    distance = perceptual.distance(a, b, batch_size=2)
    assert distance.shape == (3,) and (distance > 0).all()
    torch.testing.assert_close(distance, perceptual.distance(b, a))
    torch.testing.assert_close(perceptual.distance(a, a), torch.zeros(3))


def test_a_strip_is_shrunk_without_aliasing(alexnet):
    """AlexNet is given 64 x 64: of a strip that is too low, ten columns become their average, not two of them."""
    perceptual = load_perceptual((1, 16, 640))
    seen = []
    perceptual.model = lambda a, b: seen.append(a) or torch.zeros(len(a))
    strip = torch.randn(1, 1, 1, 640, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 16, -1)
    perceptual.distance(strip, strip)
    assert seen[0].shape == (1, 3, 64, 64) and float(seen[0].std()) < 0.4


def test_damaged_alexnet(empty_hub):
    (empty_hub / "alexnet-owt-7be5be79.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"alexnet-owt-7be5be79\.pth is damaged"):
        load_perceptual((1, 28, 28))


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_alexnet_file_cannot_run_code(empty_hub):
    torch.save({"features.0.weight": Touch(empty_hub / "touched")}, empty_hub / "alexnet-owt-7be5be79.pth")
    with pytest.raises(ValueError, match="damaged"):
        load_perceptual((1, 28, 28))
    assert not (empty_hub / "touched").exists()


def test_pairs_stay_inside_their_class_and_hold_no_image_twice():
    labels = torch.tensor([0] * 51 + [1] * 4 + [2])
    first, second = pairs_within_classes(labels).unbind(1)
    assert (labels[first] == labels[second]).all()
    assert len(torch.cat([first, second]).unique()) == 2 * len(first)
    assert (labels[first] == 0).sum() == 25 and (labels[first] == 1).sum() == 2
    few = pairs_within_classes(labels, max_pairs=6)
    assert (labels[few] == 0).sum() == 4 and (labels[few] == 1).sum() == 4  # a third of 6 pairs each
    assert pairs_within_classes(torch.arange(5)).shape == (0, 2)


def test_diversity_is_nil_in_a_collapsed_class(extractor):
    labels = torch.arange(12) // 6
    images = torch.cat([pictures(1).expand(6, -1, -1, -1), pictures(6, seed=1)])
    distances = class_diversity(EmbeddedLpips(extractor), images, labels)
    assert distances.shape == (6,)
    assert distances[:3].max() < 1e-6 and distances[3:].min() > 0.1
    assert class_diversity(EmbeddedLpips(extractor), images[5:7], labels[5:7]).shape == (0,)


class Difference:
    """A perceptual distance of images that carry numbers."""

    name = "difference"

    def distance(self, a, b, batch_size=200):
        return (a - b).flatten(1).norm(dim=1)


@pytest.mark.parametrize("num_images", [40, 200])
def test_interval_of_the_diversity_has_the_spread_of_other_images(num_images):
    generator = torch.Generator().manual_seed(0)
    intervals = []
    for _ in range(150):
        images = torch.randn(num_images, 1, 1, 4, generator=generator)
        distances = class_diversity(Difference(), images, torch.arange(num_images) % 10)
        intervals.append(bootstrap_mean(distances[:, None], lambda row: row.item(), num_resamples=100))
    spread = torch.tensor([interval.value for interval in intervals]).std().item()
    width = torch.tensor([interval.high - interval.low for interval in intervals]).mean().item()
    assert width == pytest.approx(2 * 1.96 * spread, rel=0.2)


def test_unaligned_sets(extractor, alexnet):
    for perceptual in (EmbeddedLpips(extractor), load_perceptual((1, 28, 28))):
        with pytest.raises(ValueError, match="not aligned"):
            perceptual.distance(pictures(3), pictures(4))
        with pytest.raises(ValueError, match="not aligned"):  # grey against coloured
            perceptual.distance(pictures(3), pictures(3).expand(-1, 3, -1, -1))
    with pytest.raises(ValueError, match="do not belong"):
        class_diversity(EmbeddedLpips(extractor), pictures(3), torch.zeros(4))

"""Data sets: what is read, what is refused, and the order it comes in."""

import gzip
import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.data import DATASETS, load_dataset, read_idx, register
from distill.data.base import noise_of, shuffled_indices
from distill.latents.space import LatentSpace
from distill.seeds import generator_for

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 4), dtype=np.uint8)
LABELS = np.array([0, 2, 1, 2, 0], dtype=np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    return b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def everything(dataset, seed: int = 0):
    return dataset.batch(torch.arange(len(dataset)), noise_of(generator_for(seed)))


# idx


@pytest.fixture(params=["plain", "gz"])
def idx_folder(request, tmp_path):
    for kind, array in (("images-idx3", IMAGES), ("labels-idx1", LABELS)):
        data = idx_bytes(array)
        if request.param == "gz":
            (tmp_path / f"train-{kind}-ubyte.gz").write_bytes(gzip.compress(data))
        else:
            (tmp_path / f"train-{kind}-ubyte").write_bytes(data)
    return tmp_path


def test_idx_round_trip(idx_folder):
    dataset = load_dataset("idx", idx_folder)
    x0, y = dataset.batch(torch.tensor([3, 0]), noise_of(generator_for(0)))
    assert (len(dataset), dataset.sample_shape, dataset.condition.num_classes) == (5, (1, 4, 4), 3)
    assert x0.dtype == torch.float32 and y.dtype == torch.int64
    np.testing.assert_array_equal(((x0[:, 0] + 1) * 127.5).round().numpy(), IMAGES[[3, 0]])
    assert y.tolist() == [2, 0]


def test_idx_pixels_span_minus_one_to_one(tmp_path):
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(np.array([[[0, 255]]], dtype=np.uint8)))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(1, dtype=np.uint8)))
    x0, _ = everything(load_dataset("idx", tmp_path, "test"))
    assert x0.flatten().tolist() == [-1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("short", idx_bytes(IMAGES)[:-1], "should hold .* = 80 bytes and holds 79"),
        ("long", idx_bytes(IMAGES) + b"x", "should hold .* = 80 bytes and holds 81"),
        ("magic", b"\x00\x00\x0d\x01" + bytes(8), "no idx file of unsigned bytes .*00000d01"),
        ("empty", b"", "no idx file"),
        ("header", idx_bytes(IMAGES)[:9], "cut short within its header"),
        ("cut.gz", gzip.compress(idx_bytes(IMAGES))[:-9], "cannot be unpacked"),
        ("plain.gz", idx_bytes(IMAGES), "cannot be unpacked"),
        ("garbled.gz", gzip.compress(idx_bytes(IMAGES))[:10] + b"\xff" * 60, "cannot be unpacked"),
    ],
    ids=["short", "long", "magic", "empty", "header", "cut.gz", "plain.gz", "garbled.gz"],
)
def test_damaged_idx_is_refused_by_name(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        read_idx(tmp_path / name)


def test_missing_idx_names_what_is_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte\[.gz\]"):
        load_dataset("idx", tmp_path)
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "nowhere")


def test_idx_images_and_labels_must_match(idx_folder, tmp_path):
    for path in tmp_path.glob("train-labels*"):
        path.unlink()
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(LABELS[:4]))
    with pytest.raises(ValueError, match="do not belong together"):
        load_dataset("idx", tmp_path)


def test_empty_idx_is_refused(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(IMAGES[:0]))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(LABELS[:0]))
    with pytest.raises(ValueError, match="holds no samples"):
        load_dataset("idx", tmp_path)


# image folders


def write_image(path: Path, pixels: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)


@pytest.fixture
def rgb():
    return np.random.default_rng(1).integers(0, 256, (4, 4, 3), dtype=np.uint8)


def test_colour_images(tmp_path, rgb):
    write_image(tmp_path / "b" / "0.png", rgb)
    write_image(tmp_path / "a" / "0.png", IMAGES[0])  # one grey file among colours becomes RGB
    dataset = load_dataset("images", tmp_path)
    x0, y = dataset.batch(torch.tensor([1, 0]), noise_of(generator_for(0)))
    assert (len(dataset), dataset.sample_shape, dataset.condition.num_classes) == (2, (3, 4, 4), 2)
    assert y.tolist() == [1, 0] and x0.dtype == torch.float32
    np.testing.assert_array_equal(((x0[0] + 1) * 127.5).round().numpy(), rgb.transpose(2, 0, 1))
    np.testing.assert_array_equal(((x0[1] + 1) * 127.5).round().numpy(), np.stack([IMAGES[0]] * 3))


def test_one_colour_image_makes_all_of_them_rgb(tmp_path, rgb):
    for name, image in (("0", IMAGES[0]), ("1", rgb), ("2", IMAGES[1])):
        write_image(tmp_path / "a" / f"{name}.png", image)
    assert load_dataset("images", tmp_path).sample_shape == (3, 4, 4)


def test_grey_images_keep_one_channel(tmp_path):
    for i, image in enumerate(IMAGES):
        write_image(tmp_path / f"class{i % 2}" / f"{i}.png", image)
    dataset = load_dataset("images", tmp_path)
    x0, y = everything(dataset)
    assert dataset.sample_shape == (1, 4, 4) and y.tolist() == [0, 0, 0, 1, 1]
    np.testing.assert_array_equal(((x0[:, 0] + 1) * 127.5).round().numpy(), IMAGES[[0, 2, 4, 1, 3]])


def test_images_are_opened_lazily(tmp_path, rgb):
    write_image(tmp_path / "a" / "0.png", rgb)
    write_image(tmp_path / "a" / "1.png", rgb)
    dataset = load_dataset("images", tmp_path)
    (tmp_path / "a" / "1.png").unlink()
    dataset.batch(torch.tensor([0]), noise_of(generator_for(0)))
    with pytest.raises(ValueError, match=r"a/1\.png"):
        dataset.batch(torch.tensor([1]), noise_of(generator_for(0)))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((4, 6, 3), r"bad\.png is 6 x 4; .*give data\.size"), ((8, 8, 3), r"bad\.png is 8 x 8; .*0\.png is 4 x 4")],
)
def test_images_of_wrong_size_are_refused_by_name(tmp_path, rgb, shape, message):
    write_image(tmp_path / "a" / "0.png", rgb)
    write_image(tmp_path / "a" / "bad.png", np.zeros(shape, dtype=np.uint8))
    with pytest.raises(ValueError, match=message):
        load_dataset("images", tmp_path)


def test_corrupt_images_are_refused_by_name(tmp_path, rgb):
    write_image(tmp_path / "a" / "0.png", rgb)
    noise = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    write_image(tmp_path / "b" / "cut.png", noise)
    (tmp_path / "a" / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"a/text\.png is no image"):
        load_dataset("images", tmp_path)
    for path in (tmp_path / "a").iterdir():
        path.unlink()
    write_image(tmp_path / "a" / "0.png", noise)
    whole = (tmp_path / "b" / "cut.png").read_bytes()
    (tmp_path / "b" / "cut.png").write_bytes(whole[: len(whole) // 2])  # the header is intact
    with pytest.raises(ValueError, match=r"b/cut\.png is damaged"):
        everything(load_dataset("images", tmp_path))


def test_sixteen_bit_images_are_refused(tmp_path):
    write_image(tmp_path / "a" / "deep.png", np.full((4, 4), 40000, dtype=np.uint16))
    with pytest.raises(ValueError, match=r"deep\.png .*8 bits"):
        load_dataset("images", tmp_path)


def test_image_folder_layout_errors(tmp_path, rgb):
    with pytest.raises(FileNotFoundError, match="not a folder"):
        load_dataset("images", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no class subfolders; lay the images out as FOLDER/CLASS/IMAGE"):
        load_dataset("images", tmp_path)
    write_image(tmp_path / "flat.png", rgb)
    with pytest.raises(ValueError, match="no class subfolders; lay the images out as FOLDER/CLASS/IMAGE"):
        load_dataset("images", tmp_path)
    write_image(tmp_path / "full" / "0.png", rgb)
    (tmp_path / "hollow").mkdir()
    with pytest.raises(ValueError, match="hollow"):
        load_dataset("images", tmp_path)


def test_image_splits(tmp_path, rgb):
    write_image(tmp_path / "both" / "a" / "0.png", rgb)
    assert len(load_dataset("images", tmp_path / "both", "train")) == 1
    assert len(load_dataset("images", tmp_path / "both", "test")) == 1
    root = tmp_path / "split"
    for path in ("train/a/0.png", "train/b/0.png", "test/a/0.png", "test/b/0.png", "test/b/1.png"):
        write_image(root / path, rgb)
    assert len(load_dataset("images", root, "train")) == 2
    assert len(load_dataset("images", root, "test")) == 3
    write_image(root / "test" / "c" / "0.png", rgb)
    with pytest.raises(ValueError, match="classes c are in one split only"):
        load_dataset("images", root, "train")
    write_image(tmp_path / "half" / "train" / "a" / "0.png", rgb)
    with pytest.raises(FileNotFoundError, match="but none of test, testing, val"):
        load_dataset("images", tmp_path / "half", "test")


# npz


@pytest.mark.parametrize("names", [("images", "labels"), ("arr_0", "arr_1")])
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_npz_round_trip(tmp_path, names, channels):
    shape = (5, 4, 4) if channels is None else (5, 4, 4, channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "set.npz", **dict(zip(names, (pixels, LABELS), strict=True)))
    dataset = load_dataset("npz", tmp_path / "set.npz")
    x0, y = dataset.batch(torch.tensor([3, 0]), noise_of(generator_for(0)))
    assert (len(dataset), dataset.sample_shape, dataset.condition.num_classes) == (5, (channels or 1, 4, 4), 3)
    assert y.tolist() == [2, 0] and x0.dtype == torch.float32
    expected = pixels.reshape(5, 4, 4, -1)[[3, 0]].transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(((x0 + 1) * 127.5).round().numpy(), expected)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES}, "images without labels; expected images and labels"),
        ({"images": IMAGES, "arr_1": LABELS}, "images without labels; expected images and labels"),
        ({"images": IMAGES.astype(np.float32), "labels": LABELS}, "float32 .*unsigned bytes"),
        ({"images": IMAGES[:, :3], "labels": LABELS}, "square"),
        ({"images": np.zeros((5, 4, 4, 4), np.uint8), "labels": LABELS}, "4 channels; expected 1 or 3"),
        ({"images": IMAGES, "labels": LABELS[:4]}, "expected 5 whole numbers from 0"),
        ({"images": IMAGES, "labels": LABELS - 1.5}, "expected 5 whole numbers from 0"),
        ({"images": IMAGES, "labels": LABELS.astype(np.int64) - 1}, "expected 5 whole numbers from 0"),
        ({"images": IMAGES, "labels": np.array([{}] * 5, dtype=object)}, "Object arrays cannot be loaded|allow_pickle"),
    ],
)
def test_bad_npz_is_refused_by_name(tmp_path, arrays, message):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(ValueError, match=rf"set\.npz.*({message})"):
        load_dataset("npz", tmp_path / "set.npz")


def test_damaged_or_missing_npz(tmp_path):
    np.savez(tmp_path / "set.npz", images=IMAGES, labels=LABELS)
    whole = (tmp_path / "set.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:-40])
    (tmp_path / "garbled.npz").write_bytes(whole[:200] + b"x" * 20 + whole[220:])
    (tmp_path / "text.npz").write_text("no zip")
    np.save(tmp_path / "one.npy", IMAGES)
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    for name in ("cut", "garbled", "text", "one"):
        with pytest.raises(ValueError, match=rf"{name}\.npz cannot be read"):
            load_dataset("npz", tmp_path / f"{name}.npz")
    with pytest.raises(FileNotFoundError, match="is not a file"):
        load_dataset("npz", tmp_path / "nowhere.npz")


# latents

MOMENTS = np.random.default_rng(3).uniform(0.1, 2, (3, 8, 2, 2)).astype(np.float32)
NAMES = [f"00000/img-mean-std-{i:08d}.npy" for i in range(3)]


def write_latents(folder: Path, moments=tuple(MOMENTS), labels=(4, 0, 2)) -> Path:
    (folder / "00000").mkdir(parents=True, exist_ok=True)
    for name, array in zip(NAMES, moments, strict=False):
        np.save(folder / name, array)
    labelled = [list(pair) for pair in zip(NAMES, labels, strict=True)] if labels else None
    (folder / "dataset.json").write_text(json.dumps({"labels": labelled}))
    return folder


def zip_folder(folder: Path, target: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, prefix + str(path.relative_to(folder)))
    return target


@pytest.fixture(params=["DATA", "vae-sd", "zip", "zip of DATA"])
def latents(request, tmp_path):
    folder = write_latents(tmp_path / "DATA" / "vae-sd")
    return {
        "DATA": lambda: tmp_path / "DATA",
        "vae-sd": lambda: folder,
        "zip": lambda: zip_folder(folder, tmp_path / "latents.zip"),
        "zip of DATA": lambda: zip_folder(folder, tmp_path / "data.zip", "vae-sd/"),
    }[request.param]()


def test_latents_are_drawn_from_the_posterior(latents):
    dataset = load_dataset("latents", latents)
    assert (len(dataset), dataset.sample_shape, dataset.condition.num_classes) == (3, (4, 2, 2), 5)
    z, y = dataset.batch(torch.tensor([2, 0]), noise_of(generator_for(7)))
    noise = torch.randn(2, 4, 2, 2, generator=generator_for(7)).numpy()
    picked = MOMENTS[[2, 0]]
    np.testing.assert_allclose(z.numpy(), (picked[:, :4] + picked[:, 4:] * noise) * 0.18215, rtol=1e-6)
    assert y.tolist() == [2, 4] and z.dtype == torch.float32 and dataset.space == LatentSpace(4, 0.18215, 0.0)


def test_latents_are_drawn_anew_by_another_generator(tmp_path):
    dataset = load_dataset("latents", write_latents(tmp_path))
    assert torch.equal(everything(dataset, 1)[0], everything(dataset, 1)[0])
    assert not torch.equal(everything(dataset, 1)[0], everything(dataset, 2)[0])


def test_latents_of_another_autoencoder_bring_their_space(tmp_path):
    moments = np.random.default_rng(4).uniform(0.1, 2, (3, 6, 2, 2)).astype(np.float32)
    folder = write_latents(tmp_path, tuple(moments))
    listed = json.loads((folder / "dataset.json").read_text())
    listed["vae"] = {"channels": 3, "scale": 0.5, "shift": 0.1}
    (folder / "dataset.json").write_text(json.dumps(listed))
    dataset = load_dataset("latents", folder)
    z, _ = dataset.batch(torch.tensor([1]), noise_of(generator_for(7)))
    noise = torch.randn(1, 3, 2, 2, generator=generator_for(7)).numpy()
    assert dataset.sample_shape == (3, 2, 2)
    np.testing.assert_allclose(z.numpy(), (moments[1, :3] + moments[1, 3:] * noise - 0.1) * 0.5, rtol=1e-5)


@pytest.mark.parametrize("space", [None, 0.18215, {"scale": 0}, {"scale": "big"}, {"channels": 2.5}, {"size": 4}])
def test_a_space_that_makes_no_sense_is_refused(tmp_path, space):
    folder = write_latents(tmp_path)
    listed = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**listed, "vae": space}))
    with pytest.raises(ValueError, match=r"dataset\.json: vae must hold channels, scale and shift"):
        load_dataset("latents", folder)


def test_older_latents_with_a_leading_axis(tmp_path):
    new = load_dataset("latents", write_latents(tmp_path / "new"))
    old = load_dataset("latents", write_latents(tmp_path / "old", tuple(MOMENTS[:, None])))
    assert torch.equal(everything(new)[0], everything(old)[0])


@pytest.mark.parametrize("labels", [None, (1, None, 0)])
def test_unlabelled_latents_are_refused(tmp_path, labels):
    with pytest.raises(ValueError, match=r"dataset\.json .*labels are needed"):
        load_dataset("latents", write_latents(tmp_path, labels=labels))


@pytest.mark.parametrize("label", [-1, 1.5, "cat", True])
def test_latent_labels_must_be_whole_numbers(tmp_path, label):
    with pytest.raises(ValueError, match="whole numbers from 0"):
        load_dataset("latents", write_latents(tmp_path, labels=(0, label, 1)))


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(MOMENTS[0])[:-4], "no whole npy file"),
        (b"", "no whole npy file"),
        (None, "no whole npy file"),
        (npy(MOMENTS[0, :4]), r"shape \(4, 2, 2\); expected float \(8, h, w\)"),
        (npy(MOMENTS[0].astype(np.uint8)), "holds uint8"),
        (npy(np.array([{"a": 1}], dtype=object)), "Object arrays cannot be loaded|allow_pickle"),
        (npy(np.ones((8, 4, 4), np.float32)), r"shape \(8, 4, 4\); .* has \(8, 2, 2\)"),
        (npy(-MOMENTS[0]), "standard deviations"),
    ],
    ids=["cut", "empty", "missing", "channels", "dtype", "pickle", "size", "negative"],
)
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_bad_latent_files_are_refused_by_name(tmp_path, form, data, message):
    path = write_latents(tmp_path / "vae-sd")
    (path / NAMES[1]).unlink() if data is None else (path / NAMES[1]).write_bytes(data)
    if form == "zip":
        path = zip_folder(path, tmp_path / "latents.zip")
    dataset = load_dataset("latents", path)
    with pytest.raises(ValueError, match=f"{NAMES[1]}.*({message})"):
        everything(dataset)


def test_latent_layout_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_dataset("latents", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"neither dataset\.json nor vae-sd/dataset\.json"):
        load_dataset("latents", tmp_path)
    (tmp_path / "x.zip").write_bytes(b"not a zip")
    with pytest.raises(ValueError, match=r"x\.zip is neither a folder nor a whole zip"):
        load_dataset("latents", tmp_path / "x.zip")
    (tmp_path / "dataset.json").write_text('{"labels": [["a.npy"')
    with pytest.raises(ValueError, match=r"dataset\.json is not"):
        load_dataset("latents", tmp_path)
    (tmp_path / "dataset.json").write_text('{"labels": []}')
    with pytest.raises(ValueError, match="holds no samples"):
        load_dataset("latents", tmp_path)


# order


@pytest.mark.parametrize(("num_samples", "batch_size"), [(12, 4), (10, 4), (7, 7), (5, 3), (1, 1)])
def test_each_epoch_is_a_permutation(num_samples, batch_size):
    num_epochs = 3
    steps = -(-num_epochs * num_samples // batch_size)
    stream = torch.cat([shuffled_indices(num_samples, batch_size, step, seed=5) for step in range(steps)])
    epochs = stream[: num_epochs * num_samples].view(num_epochs, num_samples)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(num_samples))
    if num_samples > 4:
        assert not torch.equal(epochs[0], epochs[1])


def test_any_step_can_be_asked_for_alone():
    forward = [shuffled_indices(10, 4, step, seed=1) for step in range(9)]
    backward = [shuffled_indices(10, 4, step, seed=1) for step in reversed(range(9))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert not torch.equal(shuffled_indices(10, 10, 0, seed=1), shuffled_indices(10, 10, 0, seed=2))


def test_an_epochs_order_is_made_once(monkeypatch):
    def anew(step):
        orders = [torch.randperm(10, generator=generator_for(6, "epoch", epoch)) for epoch in range(4)]
        return torch.cat(orders)[4 * step : 4 * (step + 1)]

    expected = [anew(step) for step in range(8)]
    made, randperm = [], torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *args, **kwargs: made.append(args) or randperm(*args, **kwargs))
    found = [shuffled_indices(10, 4, step, seed=6) for step in range(8)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert len(made) == 4


def test_batch_larger_than_the_data_names_both_numbers():
    with pytest.raises(ValueError, match=r"batch_size = 11 .*\(10 samples\)"):
        shuffled_indices(10, 11, 0, seed=0)


# registry


def test_unknown_data_set_names_the_known_ones():
    with pytest.raises(ValueError, match="one of crops, idx, images, latents, npz, pictures; got 'mnist'"):
        load_dataset("mnist", "anywhere")


def test_registering_twice_is_refused(monkeypatch):
    monkeypatch.setattr("distill.data.base.DATASETS", dict(DATASETS))
    with pytest.raises(ValueError, match="'idx' is registered already"):
        register("idx")(lambda path, split: None)  # type: ignore[arg-type,return-value]

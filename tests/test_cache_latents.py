"""Latents encoded once: REPA's layout, the same latents when read back, and a run that is killed and goes on."""

from __future__ import annotations

import io
import json
import os
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dar.checksums import CHECKSUMS_FILE, check_checksums
from distill.data import load_dataset
from distill.data.base import noise_of
from distill.data.caching import Cache, claim, file_name, write_latents
from distill.data.checking import fingerprint
from distill.errors import UserError
from distill.files import locked
from distill.latents.vae import Vae
from distill.seeds import generator_for
from tests.vae_files import make_flux2_vae, make_vae, save_vae

ROOT = Path(__file__).parents[1]
LABELS = [0, 0, 1, 1, 1]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    for i, label in enumerate(LABELS):
        path = tmp_path / "photos" / f"class{label}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i]).save(path)
    return tmp_path / "photos"


def make_cache(target: Path, photos: Path, *, flip: bool = False, dtype: str = "float32", seed: int = 0) -> Cache:
    vae = Vae(make_vae(seed=seed, scaling_factor=0.5, shift_factor=0.1), "tiny")
    return Cache(target, load_dataset("images", photos), vae, fingerprint(photos), dtype, flip)


def write(cache: Cache, batch_size: int = 2) -> int:
    """The number of files written."""
    written = []
    write_latents(cache, claim(cache), batch_size, workers=2, advance=written.append)
    return sum(written)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same(folder: Path, before: dict[str, bytes]) -> None:
    """The same files; latents up to rounding, which depends on what shares a batch."""
    after = contents(folder)
    assert after.keys() == before.keys()
    for name, data in before.items():
        if name.endswith(".npy"):
            arrays = [np.load(io.BytesIO(each)) for each in (after[name], data)]
            np.testing.assert_allclose(*arrays, rtol=1e-4, atol=1e-5)
        elif name == CHECKSUMS_FILE:
            check_checksums(folder)
        else:
            assert after[name] == data


def test_a_file_that_changed_within_its_size_makes_another_set(photos: Path) -> None:
    before = fingerprint(photos)
    assert fingerprint(photos) == before
    file = next(photos.rglob("*.png"))
    content, time_ns = file.read_bytes(), file.stat().st_mtime_ns
    file.write_bytes(content[::-1])
    os.utime(file, ns=(time_ns, time_ns + 1_000_000_000))
    assert fingerprint(photos) != before


@pytest.mark.parametrize("flip", [False, True])
def test_what_is_read_back_is_what_the_autoencoder_says(tmp_path: Path, photos: Path, flip: bool) -> None:
    cache = make_cache(tmp_path / "out", photos, flip=flip)
    assert write(cache) == (10 if flip else 5)
    images, labels = cache.images.batch(torch.arange(5), torch.randn)
    if flip:
        images, labels = torch.cat([images, images.flip(-1)]), labels.repeat(2)
    dataset = load_dataset("latents", tmp_path / "out")
    z, y = dataset.batch(torch.arange(len(labels)), noise_of(generator_for(3)))
    mean, std = cache.vae.moments(images).chunk(2, dim=1)
    noise = torch.randn(mean.shape, generator=generator_for(3))
    torch.testing.assert_close(z, (mean + std * noise - 0.1) * 0.5)
    assert y.tolist() == labels.tolist() == LABELS * (2 if flip else 1)
    assert dataset.space == cache.vae.space and dataset.sample_shape == (4, 4, 4)


def test_the_layout_is_repas(tmp_path: Path, photos: Path) -> None:
    """Names, float32 mean and std (not the log-variance) of 8 channels, unscaled, and labels by name."""
    cache = make_cache(tmp_path / "out", photos)
    write(cache)
    names = [f"00000/img-mean-std-{i:08d}.npy" for i in range(5)]
    folder = tmp_path / "out" / "vae-sd"
    assert sorted(contents(folder)) == [*names, "cache.json", CHECKSUMS_FILE, "dataset.json"]
    listed = json.loads((folder / "dataset.json").read_text())
    assert listed["labels"] == [[name, label] for name, label in zip(names, LABELS, strict=True)]
    images, _ = cache.images.batch(torch.tensor([3]), torch.randn)
    with torch.no_grad():
        posterior = make_vae().encode(images).latent_dist
    stored = np.load(folder / names[3])
    assert stored.dtype == np.float32 and stored.shape == (8, 4, 4)
    expected = torch.cat([posterior.mean, posterior.std], dim=1)[0]
    torch.testing.assert_close(torch.from_numpy(stored), expected)


def test_a_cache_of_channels_each_with_its_own_scale_goes_on(tmp_path: Path, photos: Path) -> None:
    vae = Vae(make_flux2_vae(), "tiny")
    cache = Cache(tmp_path / "out", load_dataset("images", photos), vae, fingerprint(photos), "float32", False)
    assert write(cache) == 5 and claim(cache) == []
    dataset = load_dataset("latents", tmp_path / "out")
    z, _ = dataset.batch(torch.arange(5), torch.zeros)
    images, _ = cache.images.batch(torch.arange(5), torch.randn)
    mean = vae.moments(images)[:, :16]
    assert dataset.space == vae.space and dataset.sample_shape == (16, 2, 2)
    torch.testing.assert_close(z, vae.space.latents(mean))


def test_the_thousandth_file_begins_a_new_folder() -> None:
    from distill.data.caching import file_name

    assert file_name(999) == "00000/img-mean-std-00000999.npy"
    assert file_name(1_281_166) == "01281/img-mean-std-01281166.npy"


@pytest.mark.parametrize("killed_in", ["encoding", "writing"])
def test_a_killed_run_goes_on_and_ends_the_same(
    tmp_path: Path, photos: Path, killed_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cache = make_cache(tmp_path / "whole", photos), make_cache(tmp_path / "out", photos)
    write(whole)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if killed_in == "encoding":
            moments, calls = cache.vae.moments, []

            def killed(images: torch.Tensor) -> torch.Tensor:
                calls.append(len(images))
                if len(calls) == 2:
                    raise KeyboardInterrupt
                return moments(images)

            patch.setattr(cache.vae, "moments", killed)
        else:
            replaced, files = Path.replace, []

            def killed_before_the_rename(path: Path, target: Path) -> Path:
                files.append(path)
                if len(files) == 3:  # cache.json, one file, and this
                    raise KeyboardInterrupt
                return replaced(path, target)

            patch.setattr(Path, "replace", killed_before_the_rename)
        write(cache)
    folder = tmp_path / "out" / "vae-sd"
    assert not (folder / "dataset.json").exists()
    with pytest.raises(FileNotFoundError, match=r"neither dataset\.json nor"):
        load_dataset("latents", tmp_path / "out")
    stamp = (folder / "00000/img-mean-std-00000000.npy").stat().st_mtime_ns
    assert write(make_cache(tmp_path / "out", photos)) == (3 if killed_in == "encoding" else 4)
    assert (folder / "00000/img-mean-std-00000000.npy").stat().st_mtime_ns == stamp
    assert_same(folder, contents(whole.folder))
    assert write(make_cache(tmp_path / "out", photos)) == 0


def test_a_file_that_is_cut_short_is_written_again(tmp_path: Path, photos: Path) -> None:
    cache = make_cache(tmp_path / "out", photos)
    write(cache)
    before = contents(cache.folder)
    cut = cache.folder / "00000/img-mean-std-00000002.npy"
    cut.write_bytes(cut.read_bytes()[:-1])
    (cache.folder / "00000/img-mean-std-00000004.npy").unlink()
    assert write(cache) == 2
    assert_same(cache.folder, before)


def test_a_cache_of_something_else_is_refused(tmp_path: Path, photos: Path) -> None:
    cache = make_cache(tmp_path / "out", photos)
    write(cache)
    before = contents(cache.folder)
    Image.new("RGB", (8, 8)).save(photos / "class0" / "new.png")
    for other, key in (
        (replace(cache, flip=True), "flip = False; now it is True"),
        (replace(cache, dtype="bfloat16"), "dtype = float32; now it is bfloat16"),
        (replace(cache, vae=make_cache(tmp_path, photos, seed=1).vae), "vae = .*weights"),
        (make_cache(tmp_path / "out", photos), "source = "),
    ):
        with pytest.raises(UserError, match=f"out/vae-sd was begun with {key}"):
            claim(other)
    assert contents(cache.folder) == before
    (tmp_path / "mine" / "vae-sd").mkdir(parents=True)
    (tmp_path / "mine" / "vae-sd" / "dataset.json").write_text("{}")
    with pytest.raises(UserError, match=r"is not empty and holds no cache\.json"):
        claim(replace(cache, target=tmp_path / "mine"))
    (cache.folder / "cache.json").write_text("{")
    with pytest.raises(UserError, match=r"cache\.json is damaged"):
        claim(cache)


def test_a_latent_that_was_damaged_is_named(tmp_path: Path, photos: Path) -> None:
    """One flipped bit gives another number, which no other check would find."""
    cache = make_cache(tmp_path / "out", photos)
    write(cache)
    path = cache.folder / file_name(3)
    whole = bytearray(path.read_bytes())
    whole[-2] ^= 1
    path.write_bytes(bytes(whole))
    data = load_dataset("latents", tmp_path / "out")
    data.batch(torch.tensor([0, 4]), torch.zeros)
    with pytest.raises(ValueError, match=r"img-mean-std-00000003\.npy is not as it was written"):
        data.batch(torch.tensor([2, 3]), torch.zeros)
    assert write(make_cache(tmp_path / "out", photos)) == 0  # which does not make it right
    with pytest.raises(ValueError, match=r"img-mean-std-00000003\.npy is not as it was written"):
        load_dataset("latents", tmp_path / "out").batch(torch.tensor([3]), torch.zeros)


def test_an_unreadable_image_is_named_and_the_rest_stays(tmp_path: Path, photos: Path) -> None:
    cache = make_cache(tmp_path / "out", photos)
    path = photos / "class1" / "4.png"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"4\.png is damaged"):
        write(cache)
    assert len(list(cache.folder.rglob("*.npy"))) == 4 and not (cache.folder / "dataset.json").exists()


def test_the_script_takes_a_folder_or_an_npz_and_fails_in_one_line(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(ROOT / "scripts" / "cache_latents.py"))["main"]

    def run(source: Path, target: str, vae: str) -> tuple[int, str, str]:
        code = main([str(source), str(tmp_path / target), "--vae", vae, "--batch-size", "2", "--device", "cpu"])
        return code, *capsys.readouterr()

    vae = str(save_vae(tmp_path / "vae"))
    pixels = np.random.default_rng(1).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "grey.npz", images=pixels, labels=np.array([2, 0, 1]))
    for source, target, count in ((photos, "colour", 5), (tmp_path / "grey.npz", "grey", 3)):
        code, out, err = run(source, target, vae)
        assert code == 0, err
        assert f"{count}/{count} latents, 0 s left" in err
        assert f"data.vae={vae}" in out and "0 of them there already" in out
        assert len(load_dataset("latents", tmp_path / target)) == count
    named = load_dataset("latents", tmp_path / "colour").condition
    assert getattr(named, "class_names", None) == ("class0", "class1")
    assert "3 of them there already" in run(source, "grey", vae)[1]
    with locked(tmp_path / "grey" / "vae-sd"):
        code, _, err = run(source, "grey", vae)
        assert code == 2 and "vae-sd is being written by process" in err
    stored = np.load(tmp_path / "grey" / "vae-sd" / "00000" / "img-mean-std-00000000.npy")
    expected = Vae(make_vae(), "tiny").moments(torch.from_numpy(pixels[:1, None]).float() / 127.5 - 1)[0]
    torch.testing.assert_close(torch.from_numpy(stored), expected)
    for source, target, name, message in (
        (photos, "missing", "stabilityai/no-such-vae", "`hf download stabilityai/no-such-vae`"),
        (photos, "photos/latents", vae, "photos/latents lies in SRC"),
        (tmp_path / "none", "missing", vae, "is not a folder"),
    ):
        code, _, err = run(source, target, name)
        assert code == 2 and message in err and len(err.strip().splitlines()) == 1
        assert not (tmp_path / target).exists()


def test_photos_of_any_size_are_cropped(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(ROOT / "scripts" / "cache_latents.py"))["main"]
    Image.fromarray(np.zeros((30, 20, 3), np.uint8)).save(photos / "class0" / "large.png")
    argv = [str(photos), str(tmp_path / "cached"), "--vae", str(save_vae(tmp_path / "vae")), "--device", "cpu"]
    assert main(argv) == 2 and "give data.size" in capsys.readouterr().err
    assert main([*argv, "--size", "8"]) == 0
    assert len(load_dataset("latents", tmp_path / "cached")) == 6
    assert main([*argv, "--size", "16"]) == 2 and "was begun with source" in capsys.readouterr().err

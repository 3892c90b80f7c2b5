"""Damage to what was written is found when it is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dar import SiT
from dar.checksums import CHECKSUMS_FILE, check_checksums, checksum, write_checksums
from distill.assets import asset
from distill.files import seal_folder, write_folder
from distill.models import load_model, save_model


@pytest.fixture
def saved(tiny_model: SiT, tmp_path: Path) -> Path:
    write_folder(tmp_path / "model", lambda folder: save_model(tiny_model, folder))
    return tmp_path / "model"


def test_a_checksum_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert checksum(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4


def test_every_file_of_a_folder_has_one_and_each_is_checked(saved: Path) -> None:
    names = sorted(path.name for path in saved.iterdir() if path.suffix != ".md" and path.name != CHECKSUMS_FILE)
    assert sorted(json.loads((saved / CHECKSUMS_FILE).read_text())) == names
    for name in names:
        whole = (saved / name).read_bytes()
        for bit in range(3):
            flipped = bytearray(whole)
            flipped[(bit + 1) * len(whole) // 4] ^= 1 << bit
            (saved / name).write_bytes(bytes(flipped))
            with pytest.raises(
                ValueError, match=rf"model/{name} is (damaged: |not as it was written .*, remove .*{CHECKSUMS_FILE}$)"
            ):
                load_model(saved)
        (saved / name).write_bytes(whole)
    load_model(saved)


def test_a_configuration_edited_on_purpose_is_taken_when_told(saved: Path) -> None:
    """Another number of heads fits the weights, and is another function."""
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "num_heads": 4}))
    with pytest.raises(ValueError, match=r"config\.json is not as it was written .* to accept it as it is, remove "):
        load_model(saved)
    with pytest.raises(ValueError, match=r"config\.json is not as it was written"):
        SiT.from_pretrained(saved)  # as those do who use `dar` alone
    (saved / CHECKSUMS_FILE).unlink()
    assert SiT.from_pretrained(saved).config.num_heads == 4


def test_a_folder_may_hold_more_than_was_written(saved: Path) -> None:
    (saved / "notes.txt").write_text("a good one")
    check_checksums(saved)


def test_a_model_saved_again_has_no_stale_checksums(saved: Path, tiny_model: SiT) -> None:
    with torch.no_grad():
        next(tiny_model.blocks.parameters()).add_(1)
    tiny_model.save_pretrained(saved)
    again = SiT.from_pretrained(saved)
    assert torch.equal(next(again.blocks.parameters()), next(tiny_model.blocks.parameters()))


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', "[" * 100_000])
def test_damaged_checksums_are_named(saved: Path, text: str) -> None:
    (saved / CHECKSUMS_FILE).write_text(text)
    with pytest.raises(ValueError, match=rf"{CHECKSUMS_FILE} is damaged"):
        load_model(saved)


def test_processes_share_the_work(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_text(name)
    write_checksums(tmp_path)
    (tmp_path / "b").write_text("x")
    check_checksums(tmp_path, (0, 2))  # a and c
    with pytest.raises(ValueError, match="b is not as it was written"):
        check_checksums(tmp_path, (1, 2))


def test_folders_without_weights_have_none_unless_they_are_known(tmp_path: Path) -> None:
    """Shards of an optimizer are no .safetensors, and have theirs by the processes that wrote them."""
    page, shards = tmp_path / "page", tmp_path / "shards"
    for folder in (page, shards):
        write_folder(folder, lambda folder: (folder / "0.distcp").write_text("0"))
        assert [path.name for path in folder.iterdir()] == ["0.distcp"]
    seal_folder(shards, {"0.distcp": checksum(shards / "0.distcp")})
    check_checksums(shards)
    assert list(json.loads((shards / CHECKSUMS_FILE).read_text())) == ["0.distcp"]


def test_what_is_shipped_is_whole() -> None:
    assert json.loads((asset("teacher") / CHECKSUMS_FILE).read_text())
    check_checksums(asset("teacher"))

"""Autoencoders: the numbers against diffusers' own, scale applied once, what is refused, and a model of latents
through the whole pipeline."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from dar import SiT
from distill.cli import main
from distill.conditions import ClassLabels
from distill.config import EvalConfig, TeacherConfig
from distill.data import Dataset, load_dataset
from distill.errors import UserError
from distill.evaluation.drawing import draw
from distill.evaluation.evaluator import Evaluator
from distill.latents.decoding import PIXELS, LatentPreview, decoder_for, training_decoder
from distill.latents.space import LatentSpace
from distill.latents.vae import Vae, load_vae
from distill.metrics import measure
from distill.render import class_grid, save_sample, to_uint8
from distill.sampling import draw_images, euler
from distill.sampling.guidance import Denoiser
from distill.sampling.samplers import load_sampler, teacher_sampler
from distill.sampling.schedules import t_grid
from distill.seeds import generator_for
from tests.conftest import perturbed, tiny_config
from tests.test_cli import QUICK, refused, run_config
from tests.vae_files import (
    latent_statistics,
    make_flux2_vae,
    make_qwen_image_vae,
    make_vae,
    make_wan_vae,
    save_vae,
)
from tests.vae_pipelines import DECODINGS, decoded_by

WEIGHTS = "diffusion_pytorch_model.safetensors"
CPU = torch.device("cpu")


def images(num: int = 3, channels: int = 3, side: int = 8, seed: int = 0) -> Tensor:
    return 2 * torch.rand(num, channels, side, side, generator=torch.Generator().manual_seed(seed)) - 1


def latents(num: int = 3, channels: int = 4, side: int = 4) -> Tensor:
    return torch.randn(num, channels, side, side, generator=torch.Generator().manual_seed(1))


# numbers


def test_the_space_is_sd_vaes_and_undoes_itself() -> None:
    assert LatentSpace() == LatentSpace(4, 0.18215, 0.0)
    raw = latents().double()
    space = LatentSpace(4, 0.3611, 0.1159)
    torch.testing.assert_close(space.latents(raw), (raw - 0.1159) * 0.3611)
    torch.testing.assert_close(space.raw(space.latents(raw)), raw)
    bad_ones = ({"channels": 0}, {"scale": 0.0}, {"scale": float("nan")}, {"shift": float("inf")})
    for bad in (*bad_ones, {"scale": (1.0, 1.0, 0.0, 1.0)}, {"shift": (0.0, 0.0, 0.0, float("nan"))}):
        with pytest.raises(UserError, match="a scale above 0 and a finite shift"):
            LatentSpace(**bad)
    with pytest.raises(UserError, match="latents of 4 channels have 3 numbers as their shift"):
        LatentSpace(shift=(0.0, 0.0, 0.0))


@pytest.mark.parametrize("sides", [(5, 7), (3, 5, 7)])
def test_a_scale_and_a_shift_of_each_channel(sides: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    mean, std = [0.5, -1.0, 0.0, 2.0], [2.0, 0.5, 1.0, 3.0]
    raw = torch.randn(6, 4, *sides, generator=generator, dtype=torch.float64)
    space = LatentSpace.normalised(mean, std)
    for channel in range(4):
        torch.testing.assert_close(space.latents(raw)[:, channel], (raw[:, channel] - mean[channel]) / std[channel])
    torch.testing.assert_close(space.raw(space.latents(raw)), raw)
    assert LatentSpace(**json.loads(json.dumps(asdict(space)))) == space  # as data sets record it
    assert str(space) == "scale 0.333333 to 2 by channel, shift -1 to 2 by channel"


@torch.no_grad()
def test_moments_are_diffusers_mean_and_standard_deviation() -> None:
    model = make_vae()
    posterior = model.encode(images()).latent_dist
    moments = Vae(model, "tiny").moments(images())
    assert moments.shape == (3, 8, 4, 4)
    torch.testing.assert_close(moments, torch.cat([posterior.mean, posterior.std], dim=1))
    torch.testing.assert_close(moments[:, 4:].square(), posterior.var)


@torch.no_grad()
@pytest.mark.parametrize(("scale", "shift"), [(0.18215, None), (0.5, 0.25)])
def test_decoding_takes_scale_and_shift_off_once(scale: float, shift: float | None) -> None:
    model = make_vae(scaling_factor=scale, shift_factor=shift)
    vae = Vae(model, "tiny")
    expected = model.decode(latents() / scale + (shift or 0.0)).sample
    torch.testing.assert_close(vae.decode(latents()), expected)
    mean = vae.moments(images())[:, :4]
    torch.testing.assert_close(vae.decode(vae.space.latents(mean)), model.decode(mean).sample)


def test_parts_of_a_batch_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_vae()
    vae, sizes = Vae(model, "tiny"), []
    whole = vae.moments(images(5)), vae.decode(latents(5))
    monkeypatch.setattr("distill.latents.vae.PIXELS_AT_ONCE", 2 * 64 + 1)
    for part in (model.encoder, model.decoder):
        part.register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
    for a, b in zip(whole, (vae.moments(images(5)), vae.decode(latents(5))), strict=True):
        torch.testing.assert_close(a, b)
    assert sizes == [2, 2, 1, 2, 2, 1]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_of_the_network_only(tmp_path: Path, dtype: torch.dtype) -> None:
    """exp and scale act in float32 on what the network gives."""
    folder = save_vae(tmp_path / "vae")
    vae, model = load_vae(str(folder), dtype=dtype), make_vae().to(dtype)
    mean, logvar = model.encode(images().to(dtype)).latent_dist.parameters.float().chunk(2, dim=1)
    moments = vae.moments(images())
    assert moments.dtype == torch.float32
    assert torch.equal(moments, torch.cat([mean, (0.5 * logvar).exp()], dim=1))
    decoded = vae.decode(latents())
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, model.decode((latents() / 0.18215).to(dtype)).sample.float())
    torch.testing.assert_close(moments, load_vae(str(folder)).moments(images()), atol=0.05, rtol=0.05)


def test_overflow_in_half_precision_is_named(tmp_path: Path) -> None:
    model = make_vae()
    with torch.no_grad():
        model.quant_conv.weight.mul_(1e6)
    model.save_pretrained(tmp_path / "vae")
    with pytest.raises(UserError, match=r"not finite in torch.float16; float32 and bfloat16"):
        load_vae(str(tmp_path / "vae"), dtype=torch.float16).moments(images())
    load_vae(str(tmp_path / "vae")).moments(images())


def test_grey_images_are_repeated() -> None:
    vae = Vae(make_vae(), "tiny")
    grey = images(channels=1)
    assert torch.equal(vae.moments(grey), vae.moments(grey.repeat(1, 3, 1, 1)))


def test_shapes_and_what_does_not_fit() -> None:
    vae = Vae(make_vae(levels=3), "tiny")
    assert vae.factor == 4
    assert vae.image_shape((4, 2, 3)) == (3, 8, 12) and vae.latent_shape((3, 8, 12)) == (4, 2, 3)
    assert vae.decode(latents(side=2)).shape == (3, 3, 8, 8) and vae.moments(images()).shape == (3, 8, 2, 2)
    with pytest.raises(UserError, match="makes samples of 1 channel; the autoencoder tiny decodes 4"):
        vae.decode(latents(channels=1))
    with pytest.raises(UserError, match="images have 2 channels; the autoencoder tiny takes 3"):
        vae.moments(images(channels=2))
    with pytest.raises(UserError, match="images are 6 x 6; the autoencoder tiny takes multiples of 4"):
        vae.moments(images(side=6))


# as the pipelines have them


@torch.no_grad()
@pytest.mark.parametrize("name", DECODINGS)
def test_latents_are_decoded_as_the_pipeline_decodes_them(name: str) -> None:
    given, expected = decoded_by(name)
    vae = Vae(DECODINGS[name].vae(), "tiny")
    decoded = vae.decode(given)
    assert decoded.shape[1:] == vae.image_shape(given.shape[1:])
    assert decoded.abs().median() < 0.9  # most is not clamped, and so is compared
    torch.testing.assert_close(decoded.clamp(-1, 1), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_means_and_deviations_of_channels_are_those_of_sdxls_pipeline() -> None:
    statistics = latent_statistics(4)
    model = make_vae(scaling_factor=0.5, **statistics)
    mean, std = (torch.tensor(statistics[f"latents_{name}"]).view(1, 4, 1, 1) for name in ("mean", "std"))
    expected = model.decode(latents() * std / 0.5 + mean).sample
    torch.testing.assert_close(Vae(model, "tiny").decode(latents()), expected)


@torch.no_grad()
def test_the_latents_of_flux_2_are_its_pipelines() -> None:
    from diffusers import Flux2Pipeline

    model = make_flux2_vae()
    parts = dict.fromkeys(("scheduler", "text_encoder", "tokenizer", "transformer"))
    pipeline = Flux2Pipeline(vae=model, **parts)  # pyright: ignore[reportArgumentType]
    expected = pipeline._encode_vae_image(images(), torch.Generator())
    vae = Vae(model, "tiny")
    moments = vae.moments(images())
    assert vae.latent_shape((3, 8, 8)) == (16, 2, 2) and moments.shape == (3, 32, 2, 2)
    torch.testing.assert_close(vae.space.latents(moments[:, :16]), expected, atol=1e-5, rtol=1e-5)
    std = Flux2Pipeline._patchify_latents(model.encode(images()).latent_dist.std)
    torch.testing.assert_close(moments[:, 16:], std)
    with pytest.raises(UserError, match=r"patch_size must be \[2, 2\], .* got \[1, 1\]"):
        Vae(make_flux2_vae(patch_size=(1, 1)), "tiny")


@torch.no_grad()
@pytest.mark.parametrize("patch", [None, 2])
def test_videos_are_encoded_and_decoded_in_time(patch: int | None) -> None:
    """Of Wan 2.2's small model latents are made of patches."""
    wide = {} if patch is None else {"in_channels": 12, "out_channels": 12, "patch_size": 2, "is_residual": True}
    model, side = make_wan_vae(**wide), 4 * (patch or 1)
    vae = Vae(model, "tiny")
    videos = 2 * torch.rand(2, 3, 9, 2 * side, 3 * side, generator=torch.Generator().manual_seed(0)) - 1
    assert vae.latent_shape(tuple(videos.shape[1:])) == (4, 3, 2, 3) and vae.factor == side
    assert vae.image_shape((4, 3, 2, 3)) == tuple(videos.shape[1:])
    posterior = model.encode(videos).latent_dist
    moments = vae.moments(videos)
    torch.testing.assert_close(moments, torch.cat([posterior.mean, posterior.std], dim=1))
    assert vae.decode(vae.space.latents(moments[:, :4])).shape == videos.shape
    with pytest.raises(
        UserError, match=r"videos have 8 frames; the autoencoder tiny takes 1 more than a multiple of 4"
    ):
        vae.moments(videos[:, :, :8])
    with pytest.raises(UserError, match="the model makes pictures; the autoencoder tiny is of videos"):
        vae.image_shape((4, 2, 3))
    with pytest.raises(UserError, match="the model makes videos; the autoencoder other is of pictures"):
        Vae(make_qwen_image_vae(), "other").image_shape((4, 3, 2, 3))


@torch.no_grad()
def test_qwen_images_pictures_are_videos_of_one_frame() -> None:
    model = make_qwen_image_vae()
    vae = Vae(model, "tiny")
    posterior = model.encode(images()[:, :, None]).latent_dist
    expected = torch.cat([posterior.mean, posterior.std], dim=1)[:, :, 0]
    torch.testing.assert_close(vae.moments(images()), expected)
    assert vae.latent_shape((3, 8, 8)) == (4, 4, 4) == (vae.space.channels, *expected.shape[2:])


@pytest.mark.parametrize("make", [make_wan_vae, make_qwen_image_vae, make_flux2_vae])
def test_every_class_is_loaded_from_its_folder(tmp_path: Path, make) -> None:
    """Its numbers are those before weights are rounded."""
    make().save_pretrained(tmp_path / "vae")
    vae, expected = load_vae(str(tmp_path)), Vae(make(), "tiny")
    samples = torch.randn(1, expected.space.channels, *(2,) * (3 if make is make_wan_vae else 2))
    assert vae.space == expected.space == load_vae(str(tmp_path), dtype=torch.bfloat16).space
    assert torch.equal(vae.decode(samples), expected.decode(samples))
    edit_state(tmp_path / "vae", drop="bn.running_var" if make is make_flux2_vae else "decoder.conv_in.weight")
    with pytest.raises(UserError, match=r"vae/.*safetensors does not fit its config: missing keys (bn|decoder)\."):
        load_vae(str(tmp_path))


# loading


def test_a_folder_a_pipeline_and_the_hubs_cache_are_read_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    vae = save_vae(tmp_path / "vae")
    shutil.copytree(vae, tmp_path / "pipeline" / "vae")
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    for name in ("org/plain", "org/pipeline"):
        entry = tmp_path / "cache" / f"models--{name.replace('/', '--')}"
        target = entry / "snapshots" / "abc" / ("vae" if name.endswith("pipeline") else "")
        shutil.copytree(vae, target)
        (entry / "refs").mkdir()
        (entry / "refs" / "main").write_text("abc")
    expected = Vae(make_vae(), "tiny").decode(latents())
    for name in (str(vae), str(tmp_path / "pipeline"), "org/plain", "org/pipeline"):
        assert torch.equal(load_vae(name).decode(latents()), expected)
    with pytest.raises(UserError, match=r"stabilityai/sd-vae-ft-ema is neither a folder .*`hf download stabilityai/sd"):
        load_vae("stabilityai/sd-vae-ft-ema")
    with pytest.raises(UserError, match=r"/nowhere/at/all is not a folder"):
        load_vae("/nowhere/at/all")


def test_the_published_names_of_attention_weights_are_read(tmp_path: Path) -> None:
    """SD-VAE's files have query, key, value and proj_attn."""
    folder = save_vae(tmp_path / "vae")
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    state = load_file(folder / WEIGHTS)
    for new, old in names.items():
        state = {key.replace(new, old): value for key, value in state.items()}
    assert any(".proj_attn." in key for key in state)
    save_file(state, folder / WEIGHTS)
    assert torch.equal(load_vae(str(folder)).decode(latents()), Vae(make_vae(), "tiny").decode(latents()))


def test_a_bin_file_is_read_and_never_executed(tmp_path: Path) -> None:
    folder = save_vae(tmp_path / "vae")
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(state, folder / "diffusion_pytorch_model.bin")
    assert torch.equal(load_vae(str(folder)).decode(latents()), Vae(make_vae(), "tiny").decode(latents()))

    class Evil:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "executed",)

    (folder / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps({"weight": Evil()}))
    with pytest.raises(ValueError, match=r"is damaged|asks to run"):
        load_vae(str(folder))
    assert not (tmp_path / "executed").exists()


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def edit_state(folder: Path, drop: str | None = None, add: str | None = None) -> None:
    state = load_file(folder / WEIGHTS)
    state = {key: value for key, value in state.items() if key != drop} | ({add: torch.zeros(1)} if add else {})
    save_file(state, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:999]), "is damaged"),
        (lambda f: (f / WEIGHTS).unlink(), f"no {WEIGHTS}"),
        (lambda f: edit_state(f, drop="decoder.conv_in.weight"), "missing keys decoder.conv_in.weight"),
        (lambda f: edit_state(f, add="more"), "unexpected keys more"),
        (lambda f: edit_config(f, block_out_channels=[16, 16]), "is damaged"),
        (lambda f: edit_config(f, block_out_channels="wide"), "is damaged"),
        (
            lambda f: edit_config(f, _class_name="UNet2DModel"),
            "is of UNet2DModel; autoencoders are read of AutoencoderKL, ",
        ),
        (lambda f: (f / "config.json").write_text("{"), "is no config of an autoencoder"),
        (lambda f: (f / "config.json").write_text("[]"), "is no config of an autoencoder"),
        (lambda f: (f / "config.json").unlink(), "neither config.json nor vae/config.json"),
        (lambda f: edit_config(f, latents_mean=[0.0] * 4, latents_std=[0.0] * 4), "a standard deviation above 0"),
        (
            lambda f: edit_config(f, latents_mean=[0.0] * 4, latents_std=[1.0] * 3),
            "4 channels have 3 numbers as their scale",
        ),
        (lambda f: edit_config(f, scaling_factor=0.0), "a scale above 0"),
    ],
)
def test_a_damaged_autoencoder_is_refused_in_one_line(tmp_path: Path, damage, message: str) -> None:
    folder = save_vae(tmp_path / "broken_vae")
    damage(folder)
    with pytest.raises(UserError, match=message) as error:
        load_vae(str(folder))
    assert "broken_vae" in str(error.value)


def test_a_folder_of_ours_is_no_autoencoder() -> None:
    with pytest.raises(UserError, match=r"config.json is of no class; autoencoders are read of AutoencoderKL, "):
        load_vae(str(Path(__file__).parents[1] / "distill" / "assets" / "teacher"))


def test_without_diffusers_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_vae(tmp_path / "vae")
    monkeypatch.setitem(sys.modules, "diffusers.models.autoencoders.autoencoder_kl", None)
    with pytest.raises(UserError, match=r"pip install 'dar-distill\[latents\]'"):
        load_vae(str(folder))


# decoders


def test_pixels_pass_and_latents_without_an_autoencoder_are_shown_as_they_are() -> None:
    assert decoder_for(None, (3, 8, 8), CPU) is PIXELS
    assert torch.equal(PIXELS.decode(images()), images()) and PIXELS.image_shape((3, 8, 8)) == (3, 8, 8)
    for channels, shown in ((4, 3), (2, 1)):
        decoder = decoder_for(None, (channels, 8, 8), CPU)
        assert isinstance(decoder, LatentPreview) and "--vae" in decoder.note
        assert decoder.image_shape((channels, 8, 8)) == (shown, 8, 8)
        assert decoder.decode(torch.zeros(2, channels, 8, 8)).shape == (2, shown, 8, 8)


def test_a_picture_of_latents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 or 3 channels; this has 4"):
        save_sample(latents()[0], tmp_path, "picture")
    assert not (tmp_path / "picture.png").exists()


def write_latents(folder: Path, space: dict | None = None, num: int = 8, side: int = 14, classes: int = 10) -> Dataset:
    rng = np.random.default_rng(0)
    (folder / "00000").mkdir(parents=True)
    labels = []
    for i in range(num):
        name = f"00000/img-mean-std-{i:08d}.npy"
        np.save(folder / name, rng.uniform(0.1, 2, (8, side, side)).astype(np.float32))
        labels.append([name, i % classes])
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, **({"vae": space} if space else {})}))
    return load_dataset("latents", folder)


def shape_and_space(data: Any) -> tuple[tuple[int, ...], LatentSpace]:
    return data.sample_shape, data.space


def test_grids_of_a_training_are_decoded_by_the_datas_autoencoder(tmp_path: Path) -> None:
    folder = str(save_vae(tmp_path / "vae"))
    assert training_decoder(None, (3, 8, 8), None, CPU) is PIXELS
    preview = training_decoder(None, *shape_and_space(write_latents(tmp_path / "sd")), CPU)
    assert isinstance(preview, LatentPreview)
    assert torch.equal(preview.decode(latents()), latents()[:, :3] / 3)
    assert isinstance(training_decoder(folder, *shape_and_space(load_dataset("latents", tmp_path / "sd")), CPU), Vae)
    other = write_latents(tmp_path / "other", {"scale": 0.3611, "shift": 0.1159})
    with pytest.raises(UserError, match=r"scale 0.18215, shift 0; the latents .* scale 0.3611, shift 0.1159"):
        training_decoder(folder, *shape_and_space(other), CPU)
    with pytest.raises(UserError, match="samples of 1 channel; the autoencoder"):
        training_decoder(folder, (1, 8, 8), None, CPU)


def test_measures_are_of_decoded_images(tmp_path: Path) -> None:
    """Latents of 14 x 14 become grey images of 28 x 28, which the shipped statistics are of."""
    folder = str(save_vae(tmp_path / "vae", in_channels=1, out_channels=1))
    torch.manual_seed(0)
    model = SiT(tiny_config(in_channels=4, input_size=14, patch_size=7, num_classes=10))
    perturbed(model, std=0.2)
    config = EvalConfig(vae=folder, bootstrap=2, teacher_reference=None, reference="embedded")
    evaluator = Evaluator(config, CPU, model.sample_shape)
    sampler = teacher_sampler("t", model, TeacherConfig(), 2)
    (drawing,) = draw([(sampler, 20)], config, evaluator.decoder)
    drawn = drawing.images
    raw, _ = draw_images(sampler, ClassLabels(10).balanced(20), seed=1, batch_size=20)
    expected = Vae(make_vae(in_channels=1, out_channels=1), "tiny").decode(raw)
    torch.testing.assert_close(drawn, expected.clamp(-1, 1), atol=1e-5, rtol=1e-5)
    measured = evaluator.measure(drawing)
    by_hand = measure(
        drawn,
        ClassLabels(10).balanced(20),
        data=evaluator.data,
        extractor=evaluator.extractor,
        lpips=evaluator.perceptual,
        num_bootstrap=2,
    )
    assert str(measured.measures) == str(by_hand)  # nan included
    assert measured.description == f"{sampler.description}, decoded by {folder}, scale 0.18215, shift 0"
    assert any(folder in note for note in evaluator.notes)
    with pytest.raises(ValueError, match=r"embedded. does not read images \[3, 28, 28\]"):
        Evaluator(replace(config, vae=str(save_vae(tmp_path / "rgb"))), CPU, model.sample_shape)


# the pipeline

TRAIN = """
output: {output}
model: {{input_size: 14, patch_size: 7, in_channels: 4, hidden_size: 16, depth: 1, num_heads: 2, num_classes: 10,
        routing: {{chunk_size: 2}}}}
data: {{name: latents, path: {data}{vae}}}
train: {{steps: 1, batch_size: 4, log_every: 1, grid_every: 1, save_every: 1}}
grid_steps: 2
"""


def train_latents(tmp_path: Path, name: str, vae: Path | None) -> Path:
    if not (tmp_path / "latents").exists():
        write_latents(tmp_path / "latents", num=10)
    text = TRAIN.format(output=tmp_path / name, data=tmp_path / "latents", vae=f", vae: {vae}" if vae else "")
    (tmp_path / f"{name}.yaml").write_text(text)
    assert main(["train", str(tmp_path / f"{name}.yaml")]) == 0
    return tmp_path / name


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def drawn_by_hand(folder: Path, vae: Vae, labels: Tensor, seed: int = 1, **settings: Any) -> Tensor:
    """Samples, decoded, (N, C, H, W), as bytes."""
    raw, _ = draw_images(load_sampler(str(folder), TeacherConfig(**settings)), labels, seed=seed, batch_size=250)
    return to_uint8(vae.decode(raw))


def assert_pictured(path: Path, pixels: Tensor, scale: int = 1) -> None:
    """The picture shows (C, H, W), every pixel a block; rounding may differ by one."""
    expected = pixels.squeeze(0).repeat_interleave(scale, -1).repeat_interleave(scale, -2).numpy()
    np.testing.assert_allclose(picture(path).astype(int), expected.astype(int), atol=1)


def test_a_training_on_latents_shows_what_it_can(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train_latents(tmp_path, "without", None)
    assert "grids: latents as they are, the first channels as colours" in capsys.readouterr().err
    grid = picture(run / "grids" / "step_00000001.png")
    assert grid.shape == (4 * 14 * 6, 10 * 14 * 6, 3)
    run = train_latents(tmp_path, "with", save_vae(tmp_path / "vae"))
    assert "grids: decoded by" in capsys.readouterr().err
    grid = picture(run / "grids" / "step_00000001.png")
    assert grid.shape == (4 * 28 * 3, 10 * 28 * 3, 3)
    few = ["--num-images", "2", "--steps", "2"]
    assert main(["sample", str(tmp_path / "without"), "--output", str(tmp_path / "drawn"), *few]) == 0
    assert "no autoencoder is given (--vae" in capsys.readouterr().out
    assert picture(tmp_path / "drawn" / "000000_class0.png").shape == (14, 14, 3)


def test_a_model_of_latents_through_the_pipeline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoded once wherever images are drawn; the autoencoder is found in the runs' own configurations."""
    monkeypatch.setattr("distill.verbs.run.preflight", lambda *_: 1.0)  # an untrained teacher fails it, as it should
    grey = {"in_channels": 1, "out_channels": 1}
    folder = save_vae(tmp_path / "vae", **grey)
    vae = Vae(make_vae(**grey), "tiny")
    teacher = train_latents(tmp_path, "training", folder)
    model = SiT.from_pretrained(teacher / "teacher")
    noise = torch.randn(40, 4, 14, 14, generator=generator_for(0, "grid"))
    denoiser = Denoiser(model, ClassLabels(10), 1.5)
    samples = euler(denoiser.velocity_field(torch.arange(10).repeat_interleave(4)), noise, t_grid(2))
    assert_pictured(
        teacher / "grids" / "step_00000001.png", class_grid(to_uint8(vae.decode(samples)), num_rows=4), scale=3
    )
    perturbed(model, std=0.3)  # after one update guidance would hardly show
    model.save_pretrained(teacher / "teacher")
    config = run_config(
        tmp_path, f"teacher: {{path: {teacher / 'teacher'}, cfg_channels: 3}}\nevaluate: {{vae: {folder}}}\n"
    )
    more = ["train.batch_size=8", "student.optim.lr=1e-9", "evaluate.reference=embedded", "watch.num_images=80"]
    assert main(["run", config, *QUICK, *more]) == 0
    run = tmp_path / "run"
    drawn = drawn_by_hand(run, vae, torch.arange(10).repeat_interleave(8), seed=0)
    assert_pictured(run / "grids" / "step_00000002.png", class_grid(drawn, num_rows=8), scale=3)
    page = (run / "report" / "report.html").read_text()
    assert f"decoded by {folder}" in page and "on channels 0 to 2" in page

    few, labels = ["--num-images", "4"], ClassLabels(10).balanced(4)
    assert main(["sample", str(run), "--output", str(tmp_path / "student"), *few]) == 0
    assert_pictured(tmp_path / "student" / "000000_class0.png", drawn_by_hand(run, vae, labels)[0])
    guided = ["--steps", "2", "--cfg-scale", "9", "--cfg-channels", "3"]
    assert main(["sample", str(teacher), "--output", str(tmp_path / "teacher"), *few, *guided]) == 0
    by_hand = drawn_by_hand(teacher, vae, labels, steps=2, cfg_scale=9.0, cfg_channels=3)
    assert_pictured(tmp_path / "teacher" / "000000_class0.png", by_hand[0])

    argv = ["--num-images", "20", "--reference", "embedded"]
    assert main(["evaluate", str(run), "--output", str(tmp_path / "measured"), *argv]) == 0
    measured = json.loads((tmp_path / "measured" / "measures.json").read_text())
    own = json.loads((run / "measures" / "student_2_steps.json").read_text())
    assert measured["measures"]["frechet"]["value"] == pytest.approx(own["measures"]["frechet"]["value"], rel=1e-3)
    argv += ["--teacher", str(teacher), "--output", str(tmp_path / "page"), "--steps", "3"]
    assert main(["compare", str(run), *argv]) == 0
    assert f"decoded by {folder}" in (tmp_path / "page" / "report.html").read_text()

    other = save_vae(tmp_path / "other", seed=1, **grey)
    changed = (run / "config.yaml").read_text().replace(f"vae: {folder}", f"vae: {other}")
    (run / "config.yaml").write_text(changed)
    argv[argv.index("--output") + 1] = str(tmp_path / "page2")
    capsys.readouterr()
    assert "name several autoencoders" in refused(capsys, "compare", str(run), *argv)
    for name, chosen in (("with_other", other), ("with_same", folder)):
        assert main(["sample", str(run), "--output", str(tmp_path / name), *few, "--vae", str(chosen)]) == 0
    drawn = [picture(tmp_path / name / "000000_class0.png") for name in ("student", "with_same", "with_other")]
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])

"""Spectra against closed forms: sines, white noise, power laws, Parseval."""

import math

import pytest
import torch
from torch.nn.functional import avg_pool2d

from distill.metrics.spectrum import (
    axis_power,
    band_power,
    high_frequency_ratio,
    patch_peak,
    power_spectrum,
    radial_spectrum,
    ring_power,
    spectral_difference,
    spectral_distance,
)


def noise(num_images: int, channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_images, channels, height, width, generator=torch.Generator().manual_seed(seed))


def sine(cycles: int, side: int = 28) -> torch.Tensor:
    return torch.sin(2 * math.pi * cycles * torch.arange(side) / side).expand(1, 1, side, side).clone()


@pytest.mark.parametrize("cycles", [3, 9, 13])
@pytest.mark.parametrize("transpose", [False, True])
def test_a_sine_lies_in_its_ring(cycles, transpose):
    image = sine(cycles).mT if transpose else sine(cycles)
    frequency, power = radial_spectrum(image + 0.7)  # the mean must not show
    assert power.argmax() == cycles - 1
    assert frequency[cycles - 1] == pytest.approx(cycles / 28)
    others = torch.cat([power[: cycles - 1], power[cycles:]])
    assert others.max() < 1e-6 * power.max()
    # Its two entries hold H W / 4 each: sum of squares H W / 2.
    assert power_spectrum(image).sum().item() == pytest.approx(28 * 28 / 2, rel=1e-5)


def test_rings_reach_from_one_cycle_to_nyquist():
    frequency, power = ring_power(noise(3, 1, 28, 28))
    torch.testing.assert_close(frequency, torch.arange(1, 15) / 28)
    assert power.shape == (3, 14)


@pytest.mark.parametrize("shape", [(28, 28), (9, 13)])
def test_parseval(shape):
    images = noise(3, 2, *shape) + 0.3
    centred = images - images.mean((-2, -1), keepdim=True)
    squares = centred.square().sum((-2, -1)).mean(1)
    torch.testing.assert_close(power_spectrum(images).sum((-2, -1)), squares, rtol=1e-5, atol=0)
    torch.testing.assert_close(band_power(images)[:, 1], squares / math.prod(shape), rtol=1e-5, atol=0)


def test_white_noise_is_flat_at_its_variance():
    _, power = radial_spectrum(0.5 * noise(2000, 1, 28, 28))
    # The innermost ring averages 8 entries, 4 of them independent: 8000 exponential draws, 1.1 % spread.
    torch.testing.assert_close(power, torch.full_like(power, 0.25), rtol=0.05, atol=0)


@pytest.mark.parametrize("exponent", [1.0, 2.5])
def test_power_law_noise_shows_its_slope(exponent):
    side = 64
    radius = (torch.fft.fftfreq(side)[:, None].square() + torch.fft.fftfreq(side)[None].square()).sqrt()
    gain = radius.clamp_min(1 / side) ** (-exponent / 2)
    images = torch.fft.ifft2(torch.fft.fft2(noise(400, 1, side, side)) * gain).real
    frequency, power = radial_spectrum(images)
    x, y = frequency[3:].log(), power[3:].log()  # the innermost rings are wide against their radius
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    assert slope.item() == pytest.approx(-exponent, abs=0.03)


def test_high_frequency_ratio_of_two_sines():
    images = sine(3) + 0.5 * sine(10)  # powers 1 and 1/4
    assert high_frequency_ratio(images) == pytest.approx(0.25 / 1.25, rel=1e-5)
    assert high_frequency_ratio(images + 3) == pytest.approx(0.25 / 1.25, rel=1e-5)


def test_the_cutoff_itself_belongs_to_the_band():
    assert high_frequency_ratio(sine(7)) == pytest.approx(1.0, rel=1e-5)  # 7 / 28 = 0.25
    assert high_frequency_ratio(sine(6)) == pytest.approx(0.0, abs=1e-6)


def test_high_frequency_ratio_of_white_noise_is_the_share_of_the_spectrum():
    outside = math.pi / 16  # of the unit square of frequencies, the disc of radius 1/4
    assert high_frequency_ratio(noise(500, 1, 64, 64)) == pytest.approx(1 - outside, abs=0.005)


def test_high_frequency_ratio_is_a_ratio_of_means():
    images = torch.cat([10 * sine(3), sine(10)])  # shares 0 and 1, but powers 100 and 1
    assert high_frequency_ratio(images) == pytest.approx(1 / 101, rel=1e-4)


def test_flat_images_have_no_high_frequencies():
    assert high_frequency_ratio(torch.full((2, 1, 8, 8), -1.0)) == 0.0


def test_blur_lowers_detail_and_the_distance_sees_both_sides():
    sharp = noise(50, 1, 28, 28)
    blurred = avg_pool2d(sharp, 3, 1, padding=1)
    assert high_frequency_ratio(blurred) < 0.6 * high_frequency_ratio(sharp)
    assert spectral_distance(blurred, sharp) > 3
    assert spectral_distance(sharp, sharp) == 0
    assert spectral_distance(blurred, sharp) == pytest.approx(spectral_distance(sharp, blurred), rel=1e-6)


@pytest.mark.parametrize("factor", [0.1, 0.5, 3.0])
def test_spectral_distance_of_scaled_images_in_decibels(factor):
    images = noise(4, 3, 28, 28)
    assert spectral_distance(images, factor * images) == pytest.approx(abs(20 * math.log10(factor)), rel=1e-4)


def test_lack_and_excess_do_not_cancel():
    frequency = torch.tensor([0.1, 0.3, 0.4])
    difference = spectral_difference(frequency, torch.tensor([9.0, 10, 1]), torch.tensor([1.0, 1, 10]))
    torch.testing.assert_close(difference, torch.tensor([10.0, -10], dtype=torch.float64))
    inner = spectral_difference(frequency, torch.ones(3), torch.ones(3), band=(0.1, 0.35))
    assert len(inner) == 2
    images = sine(9) + sine(12)
    other = 2 * sine(9) + 0.5 * sine(12)
    assert spectral_distance(images, other, band=(8.5 / 28, 12.5 / 28)) > 3


def test_patch_peak_is_one_on_white_noise_and_sees_a_grid():
    images = noise(1000, 1, 28, 28)
    grid = 0.5 * (torch.arange(28) % 7 == 0).float()
    for patch_size in (4, 7):
        assert patch_peak(images, patch_size) == pytest.approx(1, abs=0.15)
    # At 4, 8, 12 cycles: noise 1, and on one axis the comb's |sum|^2 / (H W) = (0.5 * 4 * 28)^2 / 784 = 4.
    assert patch_peak(images + grid, 7) == pytest.approx(5**0.5, rel=0.15)
    assert patch_peak(images + grid + grid[:, None], 7) == pytest.approx(5, rel=0.15)
    # Another patch size sees no peak; of its 8 neighbours one, at 8 cycles, is raised.
    assert patch_peak(images + grid, 4) == pytest.approx(5 ** (-1 / 8), rel=0.15)


def test_patch_peak_at_nyquist_uses_the_mirrored_neighbour():
    stripes = (torch.arange(28) % 2).float().expand(1, 1, 28, 28)
    assert patch_peak(noise(500, 1, 28, 28) + stripes, 2) > 10


def test_axis_power_of_a_horizontal_sine():
    power = axis_power(sine(5))
    assert power.shape == (1, 2, 15)
    assert power[0, 1].argmax() == 5 and power[0, 0].max() < 1e-6


@pytest.mark.parametrize("patch_size", [1, 5, 28])
def test_impossible_patch_size(patch_size):
    with pytest.raises(ValueError, match=f"patch_size is {patch_size}"):
        patch_peak(noise(1, 1, 28, 28), patch_size)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(28, 28), "must be"),
        (torch.zeros(0, 1, 28, 28), "at least 1"),
        (torch.zeros(1, 1, 28, 28, dtype=torch.uint8), "floating point"),
        (torch.full((1, 1, 28, 28), float("nan")), "nan"),
    ],
)
def test_unreadable_images(images, message):
    with pytest.raises(ValueError, match=message):
        radial_spectrum(images)


def test_bad_arguments():
    images = noise(1, 1, 28, 28)
    with pytest.raises(ValueError, match=r"cutoff is 0\.7"):
        high_frequency_ratio(images, 0.7)
    with pytest.raises(ValueError, match="none of the 14"):
        spectral_distance(images, images, band=(0.6, 0.7))
    with pytest.raises(ValueError, match="in b"):
        spectral_distance(images, noise(1, 1, 14, 14))
    with pytest.raises(ValueError, match="square"):
        patch_peak(noise(1, 1, 28, 14), 7)

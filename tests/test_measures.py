"""Measures of single images, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.fft import dctn
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from distill.metrics import MEASURES, TABLES, Interval, bootstrap_mean, measure, reference_from_images
from distill.metrics.colour import clipped_share, colour_drift, mean_colour, tones
from distill.metrics.edges import BIN_WIDTH, edge_count, edge_width, edge_widths, gradient_distance, gradient_histogram
from distill.metrics.grain import grain, grain_power, grain_share, sparsity, sparsity_coarse, sparsity_fine
from distill.metrics.grid import grid, grid_period, grid_scores, steps
from distill.metrics.paired import edge_f_score, low_frequency_psnr, ms_ssim_to_teacher, ssim_to_teacher
from distill.metrics.registry import Context
from distill.metrics.spectrum import (
    anisotropy,
    bands,
    corner_ratio,
    dct_matrix,
    high_frequency_ratio,
    high_frequency_share,
    middle_frequency_ratio,
    power_spectrum,
    ring_frequencies,
    rings,
    sectors,
    spectral_distance,
    spectral_slope,
    spectrum_of_row,
)
from distill.metrics.tables import Rows

GENERATOR = torch.Generator().manual_seed(0)
NOISE = torch.randn(40, 3, 32, 48, generator=GENERATOR)


def mean(rows: Tensor) -> Tensor:
    return rows.double().mean(0)


def blurred(images: Tensor, sigma: float) -> Tensor:
    x = torch.arange(-12, 13)
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    rows = images.flatten(0, 1)[:, None]
    for _ in range(2):
        rows = torch.nn.functional.conv2d(torch.nn.functional.pad(rows, (12, 12, 0, 0), mode="reflect"), kernel).mT
    return rows.view_as(images)


def test_power_is_the_cosine_transform_and_adds_up_to_the_variance() -> None:
    power = power_spectrum(NOISE)
    centred = (NOISE - NOISE.mean((-2, -1), keepdim=True)).double().numpy()
    expected = torch.from_numpy(dctn(centred, axes=(-2, -1), norm="ortho") ** 2).mean(1)
    torch.testing.assert_close(power.double(), expected, rtol=1e-4, atol=1e-5)
    variance = NOISE.var((-2, -1), correction=0).mean(1)
    torch.testing.assert_close(bands(NOISE).sum(1), variance, rtol=1e-4, atol=0)


@pytest.mark.parametrize(("u", "v"), [(6, 0), (0, 20), (31, 30)])
def test_a_wave_lies_in_its_ring(u: int, v: int) -> None:
    wave = dct_matrix(32)[u][:, None] * dct_matrix(32)[v]
    frequency, power = spectrum_of_row(mean(rings(wave.float()[None, None])))
    radius = math.hypot(u, v) / 64
    assert abs(float(frequency[power.argmax()]) - radius) <= 0.5 / 32 + 1e-6
    assert len(frequency) == len(power) == len(ring_frequencies(32, 32)) == 22
    assert all(
        len(ring_frequencies(side, side)) == rings(torch.rand(1, 1, side, side)).shape[1] - 2 for side in (8, 28, 256)
    )


def test_rings_are_means_so_that_power_that_is_everywhere_the_same_is_so_in_all() -> None:
    signs = 2.0 * torch.randint(2, (2, 3, 16, 24), generator=torch.Generator().manual_seed(0)) - 1
    images = dct_matrix(16).T.float() @ signs @ dct_matrix(24).float()
    _, power = spectrum_of_row(mean(rings(images)))
    torch.testing.assert_close(power, torch.ones_like(power), rtol=1e-4, atol=0)


def test_rings_of_a_picture_that_is_no_square_are_as_wide_as_its_short_side_allows() -> None:
    found = ring_frequencies(8, 16)
    assert float(found[0]) == 1 / 8 and abs(float(found[-1]) - math.hypot(7 / 16, 15 / 32)) <= 0.5 / 8


def test_a_checkerboard_lies_in_the_corner_and_a_ramp_has_no_detail() -> None:
    board = (-1.0) ** (torch.arange(32)[:, None] + torch.arange(32))
    assert corner_ratio(mean(bands(board[None, None]))) > 0.97
    ramp = torch.linspace(-1, 1, 64).expand(1, 1, 64, 64)
    assert high_frequency_share(ramp) < 1e-4  # a Fourier transform sees the jump between its borders: 0.02
    assert math.isnan(high_frequency_share(torch.ones(1, 1, 8, 8)))


def test_blur_takes_nearly_all_fine_power() -> None:
    """Of white noise a Gaussian of sigma 1 leaves the mean of exp(-4 pi^2 f^2) over the band."""
    soft = blurred(NOISE, 1.0)
    left = float(bands(soft)[:, 3:].sum() / bands(NOISE)[:, 3:].sum())
    rows, columns = torch.meshgrid(torch.arange(512) / 1024, torch.arange(512) / 1024, indexing="ij")
    radius = (rows**2 + columns**2).sqrt()
    expected = torch.exp(-4 * math.pi**2 * radius**2)[radius >= 0.25].mean()
    assert left == pytest.approx(float(expected), rel=0.1)


def test_slope_distance_and_direction() -> None:
    row = torch.cat([ring_frequencies(32, 48) ** -2.5, torch.tensor([32.0, 48.0])])
    assert spectral_slope(row) == pytest.approx(-2.5)
    louder = torch.cat([2 * row[:-2], row[-2:]])
    assert spectral_distance(louder, row) == spectral_distance(row, louder) == pytest.approx(10 * math.log10(2))
    with pytest.raises(ValueError, match="cannot be compared"):
        spectral_distance(torch.cat([row[:-2], torch.tensor([48.0, 32.0])]), row)
    assert anisotropy(mean(sectors(NOISE))) < 0.3
    assert anisotropy(mean(sectors(NOISE[:, :, :1].expand_as(NOISE)))) > 20


def wave(u: int, v: int = 0) -> Tensor:
    """One image [1, 1, 32, 32] of power 1 a pixel, at the frequency (u / 64, v / 64)."""
    return 32 * torch.outer(dct_matrix(32)[u], dct_matrix(32)[v]).float()[None, None]


def test_where_bands_rings_and_sectors_begin_and_end() -> None:
    """At a limit of 1 / 16, 1 / 8, 1 / 4 and 1 / 2 cycles per pixel, and just below it."""
    places = {(3, 0): 0, (4, 0): 1, (0, 7): 1, (8, 0): 2, (0, 15): 2, (16, 0): 3, (31, 0): 3, (22, 22): 3, (23, 23): 4}
    for place, band in places.items():
        torch.testing.assert_close(bands(wave(*place))[0], torch.eye(5)[band], rtol=1e-4, atol=1e-6)
    wide = 45 * torch.outer(dct_matrix(8)[0], dct_matrix(256)[31]).float()[None, None]  # 31 / 512
    assert bands(wide)[0].argmax() == 0 and bands(wide)[0, 0] > 0.9
    shares = [bands(sum(wave(u) for u in (3, 4, 8, 16))), bands(wave(16) + wave(23, 23))]
    assert [middle_frequency_ratio(mean(row)) for row in shares] == pytest.approx([1 / 4, 0], abs=1e-5)
    assert [high_frequency_ratio(mean(row)) for row in shares] == pytest.approx([1 / 4, 1], abs=1e-5)
    assert corner_ratio(mean(shares[1])) == pytest.approx(1 / 2, abs=1e-5)
    none, across, down, diagonal = None, 0, 1, 2  # 22.5 degrees lie between 6 and 7 of 16
    places = {(15, 0): none, (16, 0): down, (0, 16): across, (31, 0): down, (24, 24): none, (16, 16): diagonal}
    for place, sector in {**places, (16, 6): down, (16, 7): diagonal, (6, 16): across, (7, 16): diagonal}.items():
        found = sectors(wave(*place))[0]
        assert [i for i in range(3) if found[i] > 1e-3] == ([] if sector is none else [sector])
    flat = torch.cat([torch.ones(22), torch.tensor([32.0, 32.0])])
    for ring, moves_slope, moves_distance in ((3, False, False), (4, True, False), (7, True, False), (8, True, True)):
        louder = flat.clone()
        louder[ring - 1] = 10.0
        assert (abs(spectral_slope(louder)) > 1e-3) == moves_slope
        assert spectral_distance(louder, flat) == pytest.approx(10 / math.sqrt(15) if moves_distance else 0, abs=1e-5)
    empty, faint = (torch.cat([torch.full((22,), power), flat[-2:]]) for power in (0.0, 1e-8))
    assert (spectral_distance(empty, faint), spectral_slope(empty)) == pytest.approx((20, 0), abs=1e-6)
    assert anisotropy(torch.tensor([0.0, 1e-8, 1e-9])) == pytest.approx(20)


def test_what_is_too_faint_or_too_small_to_count() -> None:
    last, below = torch.full((1, 3, 4, 4), 1 - 1 / 255 + 1e-6), torch.full((1, 3, 4, 4), -1 + 1 / 255 + 1e-6)
    assert clipped_share(mean(tones(last))) == 1 and clipped_share(mean(tones(below))) == 0
    rises = [(stripe * (torch.arange(32) >= 16)).expand(1, 1, 32, 32) for stripe in (0.249, 0.251)]
    assert [edge_count(mean(edge_widths(image))) for image in rises] == pytest.approx([0, 1000 / 32])
    ramp = (((torch.arange(32) - 10) / 3).clamp(0, 1) * 1.5).expand(1, 1, 32, 32)
    shares = mean(edge_widths(ramp))[2:]
    assert len(shares) == 48 and shares.nonzero().flatten().tolist() in ([11], [12])  # quarters of a pixel
    wide = mean(edge_widths(torch.linspace(-1, 1, 32).expand(1, 1, 32, 32)))[2:]
    assert wide.nonzero().flatten().tolist() == [47]  # all that is wider is in the last
    for power, known in ((1.1e-8, 1), (0.9e-8, 0)):
        assert float(mean(sparsity(math.sqrt(power) * NOISE[:1] / NOISE[:1].std()))[1]) == known
    noise = torch.randn(4, 1, 17, 64, generator=torch.Generator().manual_seed(2))
    assert list(grid_scores(mean(steps(noise)))) == [2, 3, 4] and not grid_scores(mean(steps(noise[:, :, :7])))
    assert list(grid_scores(mean(steps(noise[:, :, :16])))) == [2, 3, 4]


@pytest.mark.parametrize("period", [2, 3, 4, 7, 8, 16])
@pytest.mark.parametrize("begin", [0, 1])
def test_a_grid_is_found_wherever_it_begins(period: int, begin: int) -> None:
    images = 0.2 * blurred(torch.randn(40, 1, 64, 64, generator=torch.Generator().manual_seed(1)), 1.0)
    lines = ((torch.arange(64) % period == begin)[:, None] | (torch.arange(64) % period == begin)).float()
    clean, found = (grid_scores(mean(steps(x))) for x in (images, images + 0.03 * lines))
    best = max(found.values())
    assert best > 3 * max(clean.values())
    told = grid_period(alone(images + 0.03 * lines))
    assert told is not None and told.value == period


def test_seams_of_patches_are_found_whatever_their_sign() -> None:
    images = 0.2 * blurred(torch.randn(40, 1, 32, 32, generator=torch.Generator().manual_seed(1)), 1.0)
    offsets = 0.1 * torch.randn(40, 1, 4, 4, generator=GENERATOR).repeat_interleave(8, 2).repeat_interleave(8, 3)
    scores = grid_scores(mean(steps(images + offsets)))
    assert max(scores, key=lambda period: scores[period]) == 8
    assert max(scores.values()) > 3 * grid(mean(steps(images)))
    flat = torch.ones(2, 1, 16, 16)
    assert math.isnan(grid(mean(steps(flat)))) and grid_period(alone(flat)) is None


def test_a_grid_of_columns_scores_as_one_of_rows() -> None:
    columns = stripes(*range(8, 48, 8))
    across, down = (grid_scores(mean(steps(images))) for images in (columns, columns.mT))
    assert across == pytest.approx(down) and max(across, key=lambda period: across[period]) == 8


@pytest.mark.parametrize("table", [bands, edge_widths, gradient_histogram, grain_power, sparsity, steps, tones])
def test_what_is_no_picture_is_refused(table: Rows) -> None:
    for bad, message in (
        (torch.zeros(1, 3, 3, 16), r"shape \[1, 3, 3, 16\]"),
        (torch.zeros(1, 3, 16, 3), r"shape \[1, 3, 16, 3\]"),
        (torch.zeros(3, 16, 16), r"shape \[3, 16, 16\]"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "images are torch.uint8"),
        (torch.full((1, 3, 16, 16), math.nan), "nan or infinite"),
    ):
        with pytest.raises(ValueError, match=message):
            table(bad)


@pytest.mark.parametrize(("ramp", "width"), [(1, 1.0), (4, 4.0), (7, 7.0)])
def test_an_edge_is_as_wide_as_its_ramp(ramp: int, width: float) -> None:
    profile = ((torch.arange(32) - 10) / ramp).clamp(0, 1) * 1.5 - 0.75
    upright = profile.expand(1, 1, 32, 32)
    for image in (upright, upright.mT, -upright):
        row = mean(edge_widths(image))
        assert edge_width(row) == pytest.approx(width, rel=1e-4)
        assert edge_count(row) == pytest.approx(1000 * 32 / 32**2, rel=0.1)
    assert math.isnan(edge_width(mean(edge_widths(0.1 * upright))))


def test_a_blurred_step_is_two_and_a_half_sigma_wide() -> None:
    step = (torch.arange(64) >= 32).float().expand(1, 1, 64, 64) * 1.6 - 0.8
    row = mean(edge_widths(blurred(step, 2.0)))
    assert edge_width(row) == pytest.approx(2 * math.sqrt(2 * math.pi), rel=0.05)


def test_gradients_of_a_ramp_and_their_distance() -> None:
    ramp = torch.linspace(-1, 1, 21).expand(1, 1, 21, 21)  # 0.1 a pixel
    histogram = mean(gradient_histogram(ramp))
    assert float(histogram.sum()) == pytest.approx(1)
    assert abs(int(histogram.argmax()) * BIN_WIDTH - 0.1) <= BIN_WIDTH
    steeper = mean(gradient_histogram(0.5 * ramp))
    assert gradient_distance(histogram, steeper) == pytest.approx(0.05, abs=BIN_WIDTH)
    assert gradient_distance(histogram, histogram) == 0


def test_noise_is_grain_and_edges_are_not() -> None:
    flat = 0.05 * NOISE
    row = mean(grain_power(flat))
    assert grain(row) == pytest.approx(50, rel=0.03)
    assert grain_share(row) == pytest.approx(1, abs=0.08)
    fine = mean(sparsity(flat))
    assert sparsity_fine(fine) == pytest.approx(2 / math.pi, rel=0.02)
    assert sparsity_coarse(fine) == pytest.approx(2 / math.pi, rel=0.1)  # borders count twice
    with_blank = mean(sparsity(torch.cat([flat, torch.ones(60, 3, 32, 48)])))  # which have no details to judge by
    assert [sparsity_fine(with_blank), sparsity_coarse(with_blank)] == pytest.approx(
        [sparsity_fine(fine), sparsity_coarse(fine)]
    )
    squares = torch.zeros(4, 1, 64, 64)
    for i, (top, left) in enumerate([(9, 11), (20, 5), (31, 30), (7, 40)]):
        squares[i, :, top : top + 15, left : left + 17] = 1
    assert sparsity_fine(mean(sparsity(squares))) < 0.1
    assert grain(mean(grain_power(squares))) < 5
    assert grain(mean(grain_power(squares + 0.05 * torch.randn(4, 1, 64, 64)))) == pytest.approx(50, rel=0.1)


def test_grain_is_looked_for_where_a_picture_is_flat_both_ways() -> None:
    """In half of the pictures it is flat; where it has waves one way or the other it has grain as well."""
    wave = 0.5 * torch.sin(torch.arange(96) / 3)
    picture = torch.zeros(1, 1, 96, 96)
    picture[..., 48:] = wave[:, None] + 0.05 * NOISE[:3, 0].reshape(96, 48)
    for seen in (picture, picture.mT):
        assert grain(mean(grain_power(seen))) < 5


def test_contrast_moves_grain_and_not_sparsity() -> None:
    images = torch.tanh(blurred(NOISE, 0.7))
    full, half = mean(sparsity(images)), mean(sparsity(0.5 * images))
    assert sparsity_fine(half) == pytest.approx(sparsity_fine(full), rel=1e-4)
    assert grain(mean(grain_power(0.5 * images))) == pytest.approx(0.5 * grain(mean(grain_power(images))), rel=1e-4)


def test_tones_of_three_colours() -> None:
    """Half red, a quarter green and one blue at full strength: rg is 255, -255 and 0, yb 127.5 twice and -255."""
    image = -torch.ones(1, 3, 8, 8)
    image[:, 0, :4], image[:, 1, 4:6], image[:, 2, 6:] = 1, 1, 1
    contrast, clipped, colourful = mean(tones(image)).tolist()
    spread = (3 / 4 * 255**2 - 63.75**2 + 3 / 4 * 127.5**2 + 255**2 / 4 - 31.875**2) * 64 / 63
    assert colourful == pytest.approx(math.sqrt(spread) + 0.3 * math.hypot(63.75, 31.875), rel=1e-5)
    assert clipped == 1 and contrast == pytest.approx(0, abs=1e-6)
    assert math.isnan(float(mean(tones(image[:, :1]))[2]))
    assert mean(tones(torch.tensor([[[[-1.0, 1.0] * 4] * 8]])))[0] == pytest.approx(1, rel=0.01)
    assert colour_drift(mean(mean_colour(image)), mean(mean_colour(image + 0.1))) == pytest.approx(0.1)


def beside(images: Tensor, teachers: Tensor) -> Context:
    return Context(images, torch.zeros(len(images)), None, None, None, None, teachers, 0, 0)


def alone(images: Tensor) -> Context:
    return Context(images, torch.zeros(len(images)), None, None, None, None, None, 0, 0)


def stripes(*columns: int) -> Tensor:
    """Two images, alike, that turn from dark to light, or back, at each of these columns."""
    turns = torch.zeros(48).index_fill(0, torch.tensor(columns, dtype=torch.long), 1).cumsum(0)
    return (1.6 * (turns % 2) - 0.8).expand(2, 1, 48, 48)


@pytest.mark.parametrize(
    ("image", "teacher", "score"),
    [
        (stripes(20), stripes(20), 1.0),
        (stripes(21), stripes(20), 1.0),  # a pixel aside
        (stripes(22), stripes(20), 0.5),  # of its two columns one is beside
        (stripes(24), stripes(20), 0.0),
        (stripes(12, 32), stripes(12), 2 / 3),  # all that is wanted, and as much that is not
        (stripes(12), stripes(12, 32), 2 / 3),
        (stripes(), stripes(20), 0.0),
        (stripes(20), stripes(), 0.0),
        (0.02 * stripes(20), stripes(20), 0.0),  # no edge is as faint
    ],
)
def test_edges_in_the_teachers_places(image: Tensor, teacher: Tensor, score: float) -> None:
    assert edge_f_score(beside(image, teacher)).value == pytest.approx(score, abs=1e-6)


def test_what_paired_measures_say_of_known_differences() -> None:
    assert edge_f_score(beside(stripes(), stripes())) is None
    assert edge_f_score(beside(torch.cat([stripes(), stripes(9)]), torch.cat([stripes()] * 2))).value == 0
    waves = [4.8 * torch.outer(dct_matrix(48)[0], dct_matrix(48)[u]).float() for u in (5, 6)]  # 5 / 96 and 1 / 16
    psnr = [low_frequency_psnr(beside(stripes(20) + error, stripes(20))).value for error in (0.1, *waves, 0)]
    assert psnr == pytest.approx([10 * math.log10(x) for x in (400, 400, 4e10, 4e10)], rel=1e-4)
    for images, of_ssim, of_ms_ssim in ((NOISE[:, :, :10, :10], 0, 0), (NOISE[:, :, :11, :], 1, 0), (NOISE, 1, 1)):
        pair = beside(images, images)
        for found, is_there in ((ssim_to_teacher(pair), of_ssim), (ms_ssim_to_teacher(pair), of_ms_ssim)):
            assert (found is not None) == bool(is_there) and (found is None or found.value == pytest.approx(1))
    assert ms_ssim_to_teacher(beside(NOISE[..., :20, :20], NOISE[..., :20, :20])) is None
    assert ms_ssim_to_teacher(beside(NOISE[..., :21, :21], NOISE[..., :21, :21])).value == pytest.approx(1)
    noisy = 0.3 * torch.randn(2, 2, 1, 176, 176, generator=torch.Generator().manual_seed(0))
    scales = multiscale_structural_similarity_index_measure(*noisy, data_range=2.0, normalize="relu")  # its own weights
    assert ms_ssim_to_teacher(beside(*noisy)).value == pytest.approx(float(scales), rel=1e-3)  # they add up to 1.0001
    flat, other = torch.full((2, 1, 32, 32), 0.5), torch.full((2, 1, 32, 32), -0.25)
    c1 = (0.01 * 2) ** 2  # of two constants SSIM is its luminance term
    luminance = (2 * 0.5 * -0.25 + c1) / (0.5**2 + 0.25**2 + c1)
    assert ssim_to_teacher(beside(flat, other)).value == pytest.approx(luminance, rel=1e-3)


def test_pictures_that_are_all_alike_or_constant_have_no_nan() -> None:
    alike = NOISE[:1].clamp(-1, 1).expand(8, -1, -1, -1)
    constant = torch.zeros(8, 3, 32, 48)
    labels = torch.zeros(8, dtype=torch.long)
    reference = reference_from_images(NOISE.clamp(-1, 1), torch.zeros(40, dtype=torch.long), None, "noise")
    for images in (alike, constant):
        found = measure(images, labels, data=reference, extractor=None, num_bootstrap=10, paired_to=images)
        assert found and all(math.isfinite(interval.value) for interval in found.values())
    assert "sparsity_fine" not in found and "edge_width" not in found


def test_kinds_stand_together_and_every_measure_says_what_it_is() -> None:
    kinds = [entry.kind for entry in MEASURES.values()]
    assert list(dict.fromkeys(kinds)) == sorted(set(kinds), key=kinds.index)
    assert len({entry.title for entry in MEASURES.values()}) == len(MEASURES)
    assert high_frequency_ratio(torch.tensor([1.0, 1.0, 1.0, 0.5, 0.5])) == pytest.approx(0.25)


def textures(seed: int, num: int) -> Tensor:
    """Smooth shapes of differing contrast with some grain."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(num, 1, 8, 8, generator=generator)
    scale = 0.3 + 0.3 * torch.rand(num, 1, 1, 1, generator=generator)
    shapes = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic")
    return scale * shapes + 0.03 * torch.randn(num, 1, 32, 32, generator=generator)


@pytest.mark.parametrize(
    "name", ["high_frequency_ratio", "spectral_slope", "anisotropy", "edge_width", "grain", "sparsity_fine", "contrast"]
)
def test_intervals_hold_their_95_percent(name: str) -> None:
    entry = MEASURES[name]
    assert entry.table is not None and entry.of_row is not None
    of_row, table = entry.of_row, TABLES[entry.table]
    truth = of_row(table(textures(0, 8000)).double().mean(0), None)
    found = [
        bootstrap_mean(table(textures(1 + seed, 60)), lambda row: of_row(row, None), num_resamples=100)
        for seed in range(200)
    ]
    held = sum(interval.low <= truth <= interval.high for interval in found)
    assert 0.90 <= held / len(found) <= 0.98


def test_intervals_of_paired_measures_hold_their_95_percent() -> None:
    def means(seed: int, num: int) -> dict[str, Interval]:
        images = textures(seed, num).clamp(-1, 1)
        other = blurred(images, 0.5)
        context = Context(images, torch.zeros(num), None, None, None, None, other, 0, 100)
        return {"ssim": ssim_to_teacher(context), "psnr": low_frequency_psnr(context)}

    truth, found = means(0, 4000), [means(1 + seed, 60) for seed in range(200)]
    for name in truth:
        held = sum(one[name].low <= truth[name].value <= one[name].high for one in found)
        assert 0.90 <= held / len(found) <= 0.98, name

"""Sobel gradients against ramps and steps, and the distance between their distributions against scipy."""

import pytest
import torch
from scipy.stats import wasserstein_distance

from distill.metrics.edges import (
    BIN_WIDTH,
    edge_density,
    gradient_distance,
    gradient_histogram,
    gradient_magnitude,
)


def test_ramp_has_its_slope_everywhere():
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(7.0), indexing="ij")
    image = (0.03 * rows + 0.04 * columns).expand(2, 3, 9, 7)
    magnitude = gradient_magnitude(image)
    assert magnitude.shape == (2, 7, 5)
    torch.testing.assert_close(magnitude, torch.full_like(magnitude, 0.05))


def test_step_shows_half_its_height_on_the_two_pixels_beside_it():
    image = torch.zeros(1, 1, 6, 10)
    image[..., 5:] = 0.8
    expected = torch.zeros(8)
    expected[3:5] = 0.4  # columns 4 and 5 of the image
    torch.testing.assert_close(gradient_magnitude(image)[0], expected.expand(4, 8))


@pytest.mark.parametrize(("height", "density"), [(0.49, 0.0), (0.51, 2 / 8)])
def test_edge_density_counts_the_pixels_beside_a_step(height, density):
    image = torch.full((3, 1, 10, 10), -1.0)
    image[..., 5:] += height
    assert edge_density(image) == pytest.approx(density)


def test_histogram_is_a_distribution_and_keeps_what_overflows():
    images = 5 * torch.randn(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    histogram = gradient_histogram(images)
    torch.testing.assert_close(histogram.sum(1), torch.ones(4))
    assert histogram[:, -1].min() > 0.1


def test_gradient_distance_is_wasserstein_1():
    generator = torch.Generator().manual_seed(0)
    a = 0.3 * torch.randn(20, 1, 16, 16, generator=generator)
    b = 0.5 * torch.randn(30, 1, 16, 16, generator=generator)
    exact = wasserstein_distance(gradient_magnitude(a).flatten(), gradient_magnitude(b).flatten())
    assert gradient_distance(a, b) == pytest.approx(exact, abs=BIN_WIDTH)
    assert gradient_distance(a, b) == pytest.approx(gradient_distance(b, a))
    assert gradient_distance(a, a) == 0


def test_gradient_distance_of_two_ramps_is_the_difference_of_their_slopes():
    ramp = torch.arange(20.0).expand(1, 1, 20, 20)
    assert gradient_distance(0.02 * ramp, 0.07 * ramp) == pytest.approx(0.05, abs=BIN_WIDTH)

"""Upsampling by name: sizes, places, refusals, and the checkerboard that a bad one leaves."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from medseg.errors import ShapeMismatch
from medseg.networks import UPSAMPLERS, checkerboard_energy, upsampler

FACTORS = [(2, 2), (3, 2), (2, 2, 2), (1, 2, 4)]


def interior(name, *, stride=2, axes=2, **options) -> torch.Tensor:
    """Return what a fresh layer makes of a smooth image, away from its border."""
    torch.manual_seed(0)
    layer = upsampler(name, axes, 8, 1, factor=(stride,) * axes, **options)
    return inner(layer)


def inner(layer) -> torch.Tensor:
    i, j = torch.meshgrid(torch.arange(32) / 8, torch.arange(32) / 8, indexing="ij")
    smooth = torch.stack([torch.sin(i + n) * torch.cos(j) + 2 for n in range(8)])[None]
    return layer(smooth)[0, 0, 8:-8, 8:-8].detach()


@pytest.mark.parametrize("factor", FACTORS, ids=str)
@pytest.mark.parametrize("name", UPSAMPLERS)
def test_each_way_multiplies_the_size_and_changes_the_channels(name, factor):
    axes = len(factor)
    layer = upsampler(name, axes, 4, 3, factor=factor)
    size = (5, 4, 3)[:axes]
    assert layer(torch.randn(2, 4, *size)).shape == (2, 3, *(n * f for n, f in zip(size, factor, strict=True)))


@pytest.mark.parametrize("factor", FACTORS, ids=str)
@pytest.mark.parametrize("name", UPSAMPLERS)
def test_a_voxel_stays_in_its_place(name, factor):
    """The answer to an impulse at voxel a lies around the middle of voxels factor * a to factor * (a + 1) - 1."""
    axes = len(factor)
    layer = upsampler(name, axes, 1, 1, factor=factor)
    for parameter in layer.parameters():
        nn.init.constant_(parameter, 1.0 if parameter.ndim > 1 else 0.0)
    x = torch.zeros(1, 1, *[9] * axes)
    x[(0, 0, *[4] * axes)] = 1
    answer = layer(x)[0, 0].detach().double()
    for axis, step in enumerate(factor):
        profile = answer.sum(dim=[other for other in range(axes) if other != axis])
        centre = float((profile * torch.arange(len(profile))).sum() / profile.sum())
        assert centre == pytest.approx(4 * step + (step - 1) / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("kernel", "stride", "right"),
    [
        (3, 2, "uneven.*use 2 or 4"),
        (1, 2, "uneven.*use 2$"),
        (4, 3, "uneven.*use 3 or 9"),
        (6, 3, "centred.*use 3 or 9"),
    ],
)
def test_a_kernel_that_overlaps_unevenly_is_refused_with_the_right_one(kernel, stride, right):
    with pytest.raises(ValueError, match=f"kernel {kernel} .*{right}"):
        upsampler("transposed", 2, 4, 4, factor=(stride, stride), kernel=kernel)


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (4, 2), (6, 2), (3, 3), (9, 3), (4, 4), (8, 4), (1, 1)])
def test_kernels_that_are_a_multiple_of_the_stride_are_taken(kernel, stride):
    layer = upsampler("transposed", 3, 2, 2, factor=(stride,) * 3, kernel=kernel)
    assert layer(torch.randn(1, 2, 5, 5, 5)).shape == (1, 2, *[5 * stride] * 3)


def test_unknown_ways_and_modes_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="choose one of transposed, resize, shuffle, linear"):
        upsampler("magic", 2, 1, 1, factor=(2, 2))
    with pytest.raises(ValueError, match="choose nearest or linear"):
        upsampler("resize", 2, 1, 1, factor=(2, 2), mode="cubic")


def test_shuffle_in_2d_is_that_of_pytorch():
    layer = upsampler("shuffle", 2, 4, 3, factor=(3, 3))
    nn.init.normal_(layer.conv.weight)
    x = torch.randn(2, 4, 5, 7)
    assert torch.equal(layer(x), functional.pixel_shuffle(layer.conv(x), 3))


def test_shuffle_begins_as_nearest_interpolation():
    layer = upsampler("shuffle", 3, 2, 2, factor=(2, 2, 2))
    answer = layer(torch.randn(1, 2, 4, 4, 4))
    assert torch.allclose(answer, functional.interpolate(answer[..., ::2, ::2, ::2], scale_factor=2), atol=1e-6)


def test_linear_is_the_interpolation_of_its_name():
    x = torch.randn(1, 2, 5, 6)
    assert torch.equal(
        upsampler("linear", 2, 2, 2, factor=(2, 3))(x),
        functional.interpolate(x, scale_factor=(2.0, 3.0), mode="bilinear", align_corners=False),
    )


class TestCheckerboard:
    @pytest.mark.parametrize("stride", [2, 3, 4])
    @pytest.mark.parametrize("shape", [(24, 36), (12, 24, 12), (30, 29)])
    def test_it_is_the_spectral_power_at_the_strides_frequency_and_its_harmonics(self, stride, shape):
        image = torch.randn(shape, generator=torch.Generator().manual_seed(stride))
        whole = tuple(size // stride * stride for size in shape)
        power = np.abs(np.fft.fftn(image.double().numpy()[tuple(map(slice, whole))])) ** 2
        power[(0,) * len(shape)] = 0
        at = tuple(slice(None, None, size // stride) for size in whole)
        assert checkerboard_energy(image, stride) == pytest.approx(power[at].sum() / power.sum(), rel=1e-9)

    def test_it_tells_the_uneven_kernel_from_the_even_one(self):
        """All weights equal: only the overlap differs. 3 over 2 gives every second voxel more."""
        energy = {}
        for kernel in (2, 3, 4):
            layer = nn.ConvTranspose2d(8, 1, kernel, stride=2, bias=False)
            nn.init.constant_(layer.weight, 1.0)
            energy[kernel] = checkerboard_energy(inner(layer), 2)
        assert energy[3] > 0.5
        assert max(energy[2], energy[4]) < 0.01 * energy[3]

    def test_fresh_layers_that_interpolate_leave_none_and_fresh_transposed_ones_do(self):
        quiet = [("resize", {}), ("resize", {"mode": "linear"}), ("shuffle", {}), ("linear", {})]
        energies = [checkerboard_energy(interior(name, **options), 2) for name, options in quiet]
        assert max(energies) < 0.01
        assert checkerboard_energy(interior("transposed"), 2) > 0.1

    def test_without_its_initialisation_shuffle_leaves_one(self):
        torch.manual_seed(0)
        layer = upsampler("shuffle", 2, 8, 1, factor=(2, 2))
        layer.conv.reset_parameters()
        assert checkerboard_energy(inner(layer), 2) > 0.1

    def test_an_image_smaller_than_the_stride_is_refused(self):
        with pytest.raises(ShapeMismatch, match="at least 4 voxels"):
            checkerboard_energy(torch.zeros(8, 3), 4)

    def test_a_constant_image_has_none(self):
        assert checkerboard_energy(torch.full((8, 8), 3.0), 2) == 0

"""Draw what fresh upsampling layers make of a smooth image, with the checkerboard energy of each.

    python benchmarks/checkerboard.py [-o docs/checkerboard.png]

Energy: the share of spectral power at the frequency of the stride and its harmonics, `checkerboard_energy`. With fresh
weights, which training may even out, and with equal ones, where only the overlap of the kernel differs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from medseg.networks import checkerboard_energy, upsampler

CHANNELS, SIZE, MARGIN, ZOOM = 8, 24, 4, 6


def layers() -> dict[str, nn.Module]:
    """Return a fresh layer of each kind, and the bad ones that `upsampler` refuses or mends."""
    factor = (2, 2)

    def fresh(name: str, **options: object) -> nn.Module:
        return upsampler(name, 2, CHANNELS, 1, factor=factor, **options)

    uneven = nn.ConvTranspose2d(CHANNELS, 1, 3, stride=2, padding=1, output_padding=1)
    plain = fresh("shuffle")
    plain.conv.reset_parameters()
    return {
        "transposed, kernel 3 (refused)": uneven,
        "transposed, kernel 2": fresh("transposed"),
        "transposed, kernel 4": fresh("transposed", kernel=4),
        "shuffle without ICNR": plain,
        "shuffle": fresh("shuffle"),
        "resize, nearest": fresh("resize"),
        "resize, linear": fresh("resize", mode="linear"),
        "linear": fresh("linear"),
    }


def smooth() -> torch.Tensor:
    """Return an image (1, C, I, J) without sharp edges."""
    i, j = torch.meshgrid(torch.linspace(-1, 1, SIZE), torch.linspace(-1, 1, SIZE), indexing="ij")
    return torch.stack([torch.exp(-2 * ((i - 0.1 * n + 0.4) ** 2 + j**2)) for n in range(CHANNELS)])[None]


def answer(layer: nn.Module) -> torch.Tensor:
    """Return what a layer makes of the image, away from the border."""
    return layer(smooth())[0, 0, MARGIN:-MARGIN, MARGIN:-MARGIN].detach()


def equal(layer: nn.Module) -> nn.Module:
    """Return a layer with all weights equal."""
    for parameter in layer.parameters():
        nn.init.constant_(parameter, 1.0)
    return layer


def main() -> None:
    """Print the energies and draw the images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/checkerboard.png"))
    options = parser.parse_args()
    torch.manual_seed(0)
    side = (2 * SIZE - 2 * MARGIN) * ZOOM
    sheet = Image.new("RGB", (4 * (side + 14) + 14, 2 * (side + 56) + 8), (18, 18, 20))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number, (name, layer) in enumerate(layers().items()):
        image = answer(layer)
        energies = checkerboard_energy(image, 2), checkerboard_energy(answer(equal(layer)), 2)
        text = "energy {:.3f}, equal weights {:.3f}".format(*energies)
        print(f"{name:<32}{text}")
        grey = ((image - image.min()) / (image.max() - image.min()) * 255).numpy().astype(np.uint8)
        x, y = 14 + number % 4 * (side + 14), 8 + number // 4 * (side + 56)
        pen.text((x, y), name, fill=(235, 235, 235), font=font)
        pen.text((x, y + 18), text, fill=(150, 150, 155), font=font)
        sheet.paste(Image.fromarray(grey).resize((side, side), Image.Resampling.NEAREST), (x, y + 40))
    sheet.save(options.output, optimize=True)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()

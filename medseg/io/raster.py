"""Pictures (PNG, JPEG, TIFF, GIF) as scans of one slice, through Pillow.

A picture has no place in a patient and, in general, no physical size: its geometry counts pixels. Axis i runs
along a row, j down the columns, channels are the colours.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from medseg.atomic import Outputs
from medseg.errors import OutputError, ScanError
from medseg.gate import Gate
from medseg.geometry import Geometry
from medseg.io.sniff import PICTURES, SUFFIXES, suffix_of
from medseg.io.voxels import scaled
from medseg.volume import LabelMap, Source, Volume

_MODES = {"1": "L", "P": "RGB", "PA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB", "La": "LA"}
_LOSSLESS = {"png": "PNG", "tiff": "TIFF", "gif": "GIF"}


def read_raster(path: Path, *, volume: int | None = None, indices: bool = False) -> Volume:
    """Return a picture as a scan of one slice: (C, I, J, 1), one channel for each colour.

    Parameters
    ----------
    path : Path
        PNG, JPEG, TIFF or GIF.
    volume : int, optional
        Which page of several, counted from 0.
    indices : bool
        Keep the indices of a picture with a palette, as label maps have them, instead of its colours.

    Raises
    ------
    ScanError
        If the picture is damaged or too large.
    """
    gate = Gate(path)
    with _opened(path, gate) as picture:
        picture.seek(gate.choose_volume(volume, getattr(picture, "n_frames", 1)))
        gate.size(picture.width * picture.height * len(picture.getbands()), 1 << 62, compressed=False)
        pixels = _pixels(picture, gate, indices=indices)
        name = (picture.format or "").lower()
    channels = scaled(np.moveaxis(pixels, (0, 1, 2), (2, 1, 0))[..., None], 1.0, 0.0, gate)
    geometry = Geometry(np.eye(4), (channels.shape[1], channels.shape[2], 1), physical=False)
    return Volume(channels, geometry, Source(path, name, tuple(gate.warnings)))


def pages(path: Path) -> int:
    """Return how many pages a picture has.

    Raises
    ------
    ScanError
        If the picture is damaged or too large.
    """
    with _opened(path, Gate(path)) as picture:
        return int(getattr(picture, "n_frames", 1))


@contextmanager
def _opened(path: Path, gate: Gate) -> Iterator[Image.Image]:
    """Open a picture; what goes wrong while it is open is a refusal."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=[name.upper() for name in sorted(PICTURES)]) as picture:
                yield picture
    except ScanError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        gate.refuse("MEMORY", f"is too large for a picture ({error})", "cut it into parts")
    except (OSError, SyntaxError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, struct.error) as error:
        # all that Pillow's decoders raise
        gate.refuse("DAMAGED", f"cannot be decoded ({error})", "save the picture again from its source")


def write_raster(image: Volume | LabelMap, path: Path, outputs: Outputs) -> None:
    """Write one slice as a picture, losslessly: label values or intensities as they are.

    Raises
    ------
    OutputError
        If there is more than one slice, or the format cannot hold the values unchanged.
    """
    name = SUFFIXES[suffix_of(path)]
    array = image.array[None] if isinstance(image, LabelMap) else image.array
    if array.shape[3] != 1:
        raise OutputError(f"{path}: a picture holds one slice, not {array.shape[3]}", hint="write .nii.gz instead")
    if name not in _LOSSLESS:
        raise OutputError(f"{path}: JPEG changes the values", hint="write .png or .tiff instead")
    pixels = np.moveaxis(array[..., 0], (0, 1, 2), (2, 1, 0))
    pixels = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    fits = pixels.dtype in (np.uint8, np.uint16) and not (name == "gif" and pixels.dtype != np.uint8)
    if not fits or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)):
        raise OutputError(
            f"{path}: {name} cannot hold {array.shape[0]} channels of {array.dtype}", hint="write .nii.gz instead"
        )
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, _LOSSLESS[name])
    outputs.write(path, [buffer.getvalue()])


def _pixels(picture: Image.Image, gate: Gate, *, indices: bool) -> npt.NDArray[np.generic]:
    """Return (rows, columns, colours) of a decoded picture."""
    if picture.mode in _MODES and not (indices and picture.mode == "P"):
        grey = picture.mode == "P" and _is_grey(picture)
        picture = picture.convert("L" if grey else _MODES[picture.mode])
    pixels: npt.NDArray[np.generic] = np.array(picture)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if picture.mode in ("LA", "RGBA"):
        if (pixels[..., -1] != 255).any():
            gate.warn("the picture is partly transparent; its transparency is ignored")
        pixels = np.ascontiguousarray(pixels[..., :-1])
    return pixels


def _is_grey(picture: Image.Image) -> bool:
    palette = np.array(picture.getpalette() or [], np.uint8).reshape(-1, 3)
    return bool((palette == palette[:, :1]).all())

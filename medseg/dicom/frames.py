"""Between the DICOM frames of a series and grids in RAS+ mm: headers, names of results, labels on the frames."""

from __future__ import annotations

import io
import uuid
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread

from medseg.geometry import Geometry
from medseg.volume import Frame, LabelMap, Stack

Array = npt.NDArray[Any]
OFF_MM, OFF_STEPS = 0.02, 0.05  # how far a slice may lie beside an even grid: mm, and fraction of a step
RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's patient axes point left, back and up


@dataclass(frozen=True)
class Producer:
    """Who made a result: the model by name, version and sha256 of its weights."""

    name: str
    version: str
    sha256: str


def header(frame: Frame) -> Dataset:
    """Return the dataset of the object that holds a frame, without its pixels."""
    if not frame.member:
        return dcmread(frame.path, stop_before_pixels=True, force=True)
    with zipfile.ZipFile(frame.path) as archive:
        return dcmread(io.BytesIO(archive.read(frame.member)), stop_before_pixels=True, force=True)


def uid_of(*parts: str) -> str:
    """Return a UID that depends on nothing but `parts`: the same result of the same scan replaces itself."""
    digest = sha256("\0".join(parts).encode()).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"


def result_uid(stack: Stack, producer: Producer, *parts: str) -> str:
    """Return the UID of a result: of the frames it was made from, the model, and what kind it is."""
    frames = [f"{frame.sop_instance}#{frame.number}" for frame in stack.frames]
    return uid_of(producer.name, producer.version, producer.sha256, *parts, *frames)


def labels_on(stack: Stack, labels: LabelMap) -> Array:
    """Return the atoms of a label map at the pixels of the frames: (columns, rows, frames).

    On the grid of the frames themselves these are the very voxels; on another one the nearest ones, and 0 outside.
    """
    grid = grid_of(stack)
    if grid is not None and grid.same_as(labels.geometry):
        return labels.array
    found = np.zeros((*stack.size, len(stack.frames)), labels.array.dtype, order="F")
    pixels = np.indices((*stack.size, 1), dtype=np.float32).reshape(3, -1)
    shape = np.array(labels.geometry.shape)[:, None]
    for k, affine in enumerate(stack.affines):
        move = np.linalg.inv(labels.geometry.affine) @ affine
        index = np.rint(move[:3, :3] @ pixels + move[:3, 3:]).astype(np.intp)
        inside = ((index >= 0) & (index < shape)).all(axis=0)
        i, j, k_label = index[:, inside]
        plane = np.zeros(pixels.shape[1], labels.array.dtype)
        plane[inside] = labels.array[i, j, k_label]
        found[..., k] = plane.reshape(stack.size)
    return found


def grid_of(stack: Stack) -> Geometry | None:
    """Return the grid that the frames form, sheared where the gantry was tilted; None where they form none.

    It runs through the first and the last frame; the others may lie beside it as far as `placing.place` allows.
    """
    affine = stack.affines[0].copy()
    if len(stack.frames) > 1:
        affine[:3, 2] = (stack.affines[-1] - stack.affines[0])[:3, 3] / (len(stack.frames) - 1)
    expected = affine[:3, 3] + np.arange(len(stack.frames))[:, None] * affine[:3, 2]
    allowed = OFF_MM + OFF_STEPS * float(np.linalg.norm(affine[:3, 2]))
    if np.linalg.norm(stack.affines[:, :3, 3] - expected, axis=1).max() > allowed:
        return None
    return Geometry(affine, (*stack.size, len(stack.frames)))


def axes_of(orientation: Sequence[float]) -> tuple[Array, Array]:
    """Return the unit vectors along a row and along a column, at a right angle: rounding in the header is undone."""
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    row /= np.linalg.norm(row)
    column -= (column @ row) * row
    return row, column / np.linalg.norm(column)


def plane_affine(
    position: Sequence[float], orientation: Sequence[float], spacing: Sequence[float], thickness: float = 1.0
) -> Array:
    """Return the affine of an image plane: (column, row, 0, 1) to mm, RAS+.

    Parameters
    ----------
    position : three floats
        ImagePositionPatient, in mm, LPS+.
    orientation : six floats
        ImageOrientationPatient: unit vectors along a row (of growing columns) and along a column.
    spacing : two floats
        PixelSpacing in mm: between rows, between columns.
    thickness : float
        Length in mm of the third column, along the normal.
    """
    row, column = axes_of(orientation)
    affine = np.eye(4)
    affine[:3, 0] = row * spacing[1]
    affine[:3, 1] = column * spacing[0]
    affine[:3, 2] = np.cross(row, column) * thickness
    affine[:3, 3] = position
    return RAS @ affine

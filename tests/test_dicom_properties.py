"""Whatever a DICOM series looks like, its voxels lie where it says, and a slice too few or out of place is refused."""

from copy import deepcopy

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from phantoms import series, store
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from medseg.dicom.series import read_series
from medseg.errors import ScanError

PLAIN = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
WEIGHTS = np.array([3.0, -2.0, 5.0])  # intensity for each mm to the left, back and head: differs in all directions
SLOPE = 0.1
quick = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def orientations(draw):
    """Draw two axes at right angles: any rotation, and in-plane mirrors of the sort that patient positions make."""
    if draw(st.booleans()):  # along the axes of the patient: head or feet first, supine, prone, on a side
        row, column = draw(st.permutations([0, 1, 2]))[:2]
        axes = np.eye(3)[[row, column]]
    else:
        numbers = draw(st.lists(st.floats(-1, 1), min_size=9, max_size=9))
        axes = np.linalg.qr(np.reshape(numbers, (3, 3)) + 3 * np.eye(3))[0].T[:2]
    signs = draw(st.tuples(*[st.sampled_from([1, -1])] * 2))
    return tuple((axes * np.reshape(signs, (2, 1))).ravel().tolist())


@st.composite
def scans(draw, fewest=3, most=7):
    """Draw datasets of a series whose intensity is a linear function of the place, in the order of their positions."""
    shape = draw(st.tuples(*(st.integers(low, high) for low, high in ((1, 9), (1, 9), (fewest, most)))))
    spacing = draw(st.tuples(*[st.floats(0.2, 5)] * 2))
    step = draw(st.floats(0.3, 8))
    origin = draw(st.tuples(*[st.floats(-300, 300)] * 3))
    orientation = draw(orientations())
    tags = {"SliceThickness": f"{step:.6g}"}
    datasets = series(
        np.zeros(shape, np.int16), spacing=spacing, step=step, orientation=orientation, origin=origin, **tags
    )
    for dataset in datasets:
        dataset.PixelSpacing = [f"{mm:.8g}" for mm in spacing]
        paint(dataset)
    return datasets


def paint(dataset):
    """Set the pixels of a slice to the linear function of their places."""
    dataset.RescaleSlope, dataset.RescaleIntercept = str(SLOPE), "0"
    row, column = np.array(dataset.ImageOrientationPatient, float).reshape(2, 3)
    between_rows, between_columns = map(float, dataset.PixelSpacing)
    c, r = np.meshgrid(np.arange(dataset.Columns), np.arange(dataset.Rows))
    place = (
        np.array(dataset.ImagePositionPatient, float)
        + c[..., None] * between_columns * row
        + r[..., None] * between_rows * column
    )
    dataset.PixelData = np.rint(place @ WEIGHTS / SLOPE).astype("<i2").tobytes()
    dataset["PixelData"].VR = "OW"


def written(datasets, folder, syntaxes=(ExplicitVRLittleEndian,)):
    """Write datasets in the order given, each in the next syntax, under names that say nothing."""
    folder.mkdir()
    for number, dataset in enumerate(datasets):
        syntax = syntaxes[number % len(syntaxes)]
        pixels = dataset.PixelData
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = np.frombuffer(pixels, "<i2").astype(">i2").tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax
        if syntax == RLELossless:
            dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.save_as(folder / f"{number * 7919 % 1009:04d}", enforce_file_format=True)
    return folder


def refused(folder) -> str:
    with pytest.raises(ScanError) as caught:
        read_series(folder)
    return caught.value.code


def assert_lies_right(volume, slices):
    grid = volume.geometry
    assert grid.shape[2] == slices
    lps = grid.to_world(np.stack(np.indices(grid.shape), axis=-1)) * [-1, -1, 1]
    off = 0.6 * SLOPE + 0.01 * np.abs(WEIGHTS).sum()  # a rounded pixel, and 0.01 mm
    np.testing.assert_allclose(volume.array[0], lps @ WEIGHTS, atol=off)


@pytest.fixture
def folders(tmp_path):
    """Yield a new folder each time it is asked for."""
    return (tmp_path / str(number) for number in range(1 << 20))


def same(one, other):
    np.testing.assert_array_equal(one.array, other.array)
    np.testing.assert_allclose(one.geometry.affine, other.geometry.affine, atol=1e-9)


@quick
@given(scans(1, 7), st.randoms(use_true_random=False), st.lists(st.sampled_from(PLAIN), min_size=1))
def test_every_voxel_lies_where_its_header_says(folders, datasets, random, syntaxes):
    if len({*syntaxes}) > 1 and DeflatedExplicitVRLittleEndian in syntaxes:
        syntaxes = [syntax for syntax in syntaxes if syntax != DeflatedExplicitVRLittleEndian]
    random.shuffle(datasets)
    assert_lies_right(read_series(written(datasets, next(folders), syntaxes)), len(datasets))


@settings(quick, max_examples=5)
@given(scans(), st.randoms(use_true_random=False))
def test_compressed_slices_lie_where_their_header_says(folders, datasets, random):
    random.shuffle(datasets)
    folder = written(datasets, next(folders), (RLELossless, ExplicitVRLittleEndian))
    assert_lies_right(read_series(folder), len(datasets))


@quick
@given(scans(4, 9), st.data())
def test_an_inner_slice_that_is_gone_is_refused(folders, datasets, data):
    del datasets[data.draw(st.integers(1, len(datasets) - 2))]
    assert refused(written(datasets, next(folders))) in {"GEOM_MISSING_SLICE", "GEOM_VARIABLE_SPACING"}


@quick
@given(scans(3, 3))
def test_the_middle_of_three_slices_that_is_gone_is_refused(folders, datasets):
    assert refused(written(datasets[::2], next(folders))) == "GEOM_TOO_FEW_SLICES"


@quick
@given(scans(4, 9), st.data())
def test_a_slice_out_of_place_along_the_normal_is_refused(folders, datasets, data):
    moved = datasets[data.draw(st.integers(0, len(datasets) - 1))]
    step = float(moved.SliceThickness)
    by = data.draw(st.floats(0.06, 0.45)) * step * data.draw(st.sampled_from([1, -1]))
    row, column = np.array(moved.ImageOrientationPatient, float).reshape(2, 3)
    place = np.array(moved.ImagePositionPatient, float) + by * np.cross(row, column)
    moved.ImagePositionPatient = [f"{mm:.6f}" for mm in place]
    assert refused(written(datasets, next(folders))) in {"GEOM_MISSING_SLICE", "GEOM_VARIABLE_SPACING"}


@quick
@given(scans(4, 9), st.data())
def test_a_slice_out_of_place_beside_the_others_is_refused(folders, datasets, data):
    moved = datasets[data.draw(st.integers(1, len(datasets) - 2))]
    row = np.array(moved.ImageOrientationPatient, float)[:3]
    by = data.draw(st.floats(1, 20)) * data.draw(st.sampled_from([1, -1])) * max(map(float, moved.PixelSpacing))
    moved.ImagePositionPatient = [f"{mm:.6f}" for mm in np.array(moved.ImagePositionPatient, float) + by * row]
    assert refused(written(datasets, next(folders))) == "GEOM_NOT_ALIGNED"


@quick
@given(scans(), st.data())
def test_copies_of_slices_change_nothing(folders, datasets, data):
    whole = read_series(written(datasets, next(folders)))
    copies = data.draw(st.lists(st.sampled_from(datasets), min_size=1, max_size=6))
    again = read_series(written([*datasets, *copies], next(folders)))
    same(again, whole)
    assert f"{len(copies)} slices repeat another one" in " ".join(again.source.warnings)


@quick
@given(scans(), st.data())
def test_another_slice_at_a_taken_position_is_refused(folders, datasets, data):
    folder = written(datasets, next(folders))
    twin = data.draw(st.sampled_from(datasets))
    pixels = np.frombuffer(twin.PixelData, "<i2").copy()
    pixels[data.draw(st.integers(0, len(pixels) - 1))] ^= 1
    twin.PixelData, twin.SOPInstanceUID = pixels.tobytes(), f"{twin.SOPInstanceUID}.1"
    twin.save_as(folder / "twin", enforce_file_format=True)
    assert refused(folder) == "DUP_POSITION"


@quick
@given(scans(), st.randoms(use_true_random=False), st.lists(st.integers(-5, 5), min_size=9, max_size=9))
def test_instance_numbers_say_nothing_of_the_place(folders, datasets, random, numbers):
    whole = read_series(written(datasets, next(folders)))
    random.shuffle(numbers)
    for dataset, number in zip(datasets, numbers, strict=False):
        dataset.InstanceNumber = number
        dataset.SliceLocation = str(number)
    same(read_series(written(datasets, next(folders))), whole)


@quick
@given(scans(), st.lists(st.binary(max_size=300), max_size=5))
def test_things_that_are_no_images_change_nothing(folders, datasets, junk):
    folder = written(datasets, next(folders))
    whole = read_series(folder)
    (folder / "sub" / "empty").mkdir(parents=True)
    report = series(uid="1.2.3.4", Modality="SR")[0]
    del report.PixelData, report.Rows, report.Columns
    store([report], folder / "sub", suffix=".sr")
    for number, content in enumerate(junk):
        (folder / "sub" / f"junk{number}.dcm").write_bytes(content.replace(b"DICM", b""))
    same(read_series(folder), whole)


@quick
@given(scans())
def test_a_second_series_that_goes_on_where_the_first_ends_is_never_joined_to_it(folders, datasets):
    others = deepcopy(datasets)
    first, last = (np.array(datasets[n].ImagePositionPatient, float) for n in (0, -1))
    step = (last - first) / (len(datasets) - 1)
    for n, dataset in enumerate(others):
        dataset.SeriesInstanceUID += ".1"
        dataset.ImagePositionPatient = [f"{mm:.6f}" for mm in last + (n + 1) * step]
        paint(dataset)
    folder = next(folders)
    store(datasets, folder / "one")
    store(others, folder / "two")
    assert refused(folder) == "SEVERAL_SERIES"
    assert_lies_right(read_series(folder, series=others[0].SeriesInstanceUID), len(others))

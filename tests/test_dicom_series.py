"""A folder of DICOM becomes the right volume or a named refusal: the traps that readers fall into, one by one."""

import os
import zipfile

import numpy as np
import pytest
from phantoms import AXIAL, OBLIQUE_AXES, body, series, store
from pydicom import DataElement
from pydicom.uid import ImplicitVRLittleEndian, RLELossless

from medseg.dicom.frames import grid_of
from medseg.dicom.series import choose, read_series, survey
from medseg.errors import ScanError

CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


def refused(folder, **options) -> ScanError:
    with pytest.raises(ScanError) as caught:
        read_series(folder, **options)
    return caught.value


def slope_of_space(datasets):
    """Set the pixels of each slice to a linear function of their place, in tenths of HU, and return the function."""
    weights = np.array([3.0, -2.0, 5.0])
    for dataset in datasets:
        row, column = np.array(dataset.ImageOrientationPatient).reshape(2, 3)
        c, r = np.meshgrid(np.arange(dataset.Columns), np.arange(dataset.Rows))
        place = (
            np.array(dataset.ImagePositionPatient, float)
            + c[..., None] * dataset.PixelSpacing[1] * row
            + r[..., None] * dataset.PixelSpacing[0] * column
        )
        dataset.PixelData = np.rint(place @ weights * 10).astype("<i2").tobytes()
        dataset.RescaleIntercept, dataset.RescaleSlope = "0", "0.1"
    return lambda ras: (ras * [-1, -1, 1]) @ weights


@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, OBLIQUE_AXES])
@pytest.mark.parametrize("step", [2.5, 0.7])
def test_a_series_is_read_where_it_lies_whatever_its_files_are_called(tmp_path, orientation, step):
    datasets = series(orientation=orientation, step=step)
    place = slope_of_space(datasets)
    volume = read_series(store(datasets, tmp_path / "a"))
    grid = volume.geometry
    assert grid.shape == (40, 32, 12)
    np.testing.assert_allclose(grid.spacing, (0.9, 0.8, step), atol=1e-6)
    at = grid.to_world(np.stack(np.indices(grid.shape), axis=-1))
    np.testing.assert_allclose(volume.array[0], place(at), atol=0.06)
    assert volume.source.warnings == ()


def test_values_are_those_that_were_stored(tmp_path):
    volume = read_series(store(series(), tmp_path / "a", suffix=""))
    np.testing.assert_array_equal(volume.array[0], body())
    assert volume.array.dtype == np.int16


def test_two_series_in_one_folder_are_listed_and_never_merged(tmp_path):
    store(series(), tmp_path / "a")
    store(series(body() + 1, uid="1.2.3", SeriesDescription="second", SeriesNumber=4), tmp_path / "a" / "b")
    error = refused(tmp_path / "a")
    assert error.code == "SEVERAL_SERIES"
    assert "--series" in error.hint
    assert "second" in error.hint
    for chosen, extra in (("1", 0), ("2", 1), ("SECOND", 1), (series(uid="1.2.3")[0].SeriesInstanceUID, 1)):
        np.testing.assert_array_equal(read_series(tmp_path / "a", series=chosen).array[0], body() + extra)
    assert refused(tmp_path / "a", series="7").code == "NO_SERIES"


def test_two_patients_are_never_one_volume(tmp_path):
    store(series(uid="1.2.1"), tmp_path / "a" / "one")
    store(series(uid="1.2.2", PatientID="P2", origin=(-16, -14.4, 130)), tmp_path / "a" / "two")
    assert refused(tmp_path / "a").code == "SEVERAL_SERIES"


@pytest.mark.parametrize("same_uid", [True, False])
def test_a_slice_that_is_there_twice_is_read_once(tmp_path, same_uid):
    datasets, again = series(), series()[4:6]
    again[0].compress(RLELossless, generate_instance_uid=False)
    for twin in again:
        if not same_uid:
            twin.SOPInstanceUID += ".1"
    volume = read_series(store(datasets + again, tmp_path / "a"))
    np.testing.assert_array_equal(volume.array[0], body())
    assert volume.source.warnings == ("2 slices repeat another one and were passed over",)
    assert len(volume.source.stack.frames) == 12


def test_another_slice_at_the_same_position_is_refused(tmp_path):
    twin = series(body() + 3)[4]
    twin.SOPInstanceUID += ".1"
    error = refused(store([*series(), twin], tmp_path / "a"))
    assert error.code == "DUP_POSITION"
    assert "slice 5" in str(error)


def test_a_missing_slice_is_refused_with_its_place(tmp_path):
    datasets = series()
    del datasets[6]
    error = refused(store(datasets, tmp_path / "a"))
    assert error.code == "GEOM_MISSING_SLICE"
    assert "between slice 6 and slice 8" in str(error)
    assert "5 mm apart instead of 2.5" in str(error)


def test_a_missing_slice_is_interpolated_on_request_and_said(tmp_path):
    datasets = series()
    place = slope_of_space(datasets)
    del datasets[6]
    volume = read_series(store(datasets, tmp_path / "a"), repair=True)
    assert volume.geometry.shape == (40, 32, 12)
    at = volume.geometry.to_world(np.stack(np.indices((40, 32, 12)), axis=-1))
    np.testing.assert_allclose(volume.array[0], place(at), atol=0.11)
    assert "GEOM_MISSING_SLICE" in volume.source.warnings[0]
    assert len(volume.source.stack.frames) == 11


def test_a_series_cut_at_its_end_is_told_by_what_its_header_announces(tmp_path):
    datasets = series(ImagesInAcquisition=12)[:-1]
    volume = read_series(store(datasets, tmp_path / "a"))
    assert volume.source.warnings == ("its header announces 12 images in the acquisition, 11 are there",)


@pytest.mark.parametrize("slant", [(0, 0.67, 0), (0.3, -0.5, 0), (0, -0.7, 0)])
def test_a_tilted_gantry_is_straightened(tmp_path, slant):
    datasets = series(slant=slant)
    place = slope_of_space(datasets)
    volume = read_series(store(datasets, tmp_path / "a"))
    assert volume.geometry.shear < 1e-6
    assert "GEOM_TILT" in volume.source.warnings[0]
    at = volume.geometry.to_world(np.stack(np.indices(volume.geometry.shape), axis=-1))
    inside = volume.array[0] != -1024
    off = np.abs(volume.array[0] - place(at))[inside]
    assert np.quantile(off, 0.9) < 0.11  # but for the pixels that blend with the outside
    assert inside.sum() > 0.95 * 40 * 32 * 12
    assert grid_of(volume.source.stack).shear > 5  # results go back onto the slices as they lie


def test_a_small_drift_is_kept_exactly_and_not_resampled(tmp_path):
    volume = read_series(store(series(slant=(0, 0.005, 0)), tmp_path / "a"))
    np.testing.assert_array_equal(volume.array[0], body())
    np.testing.assert_allclose(volume.geometry.affine[:3, 2], (0, -0.005, 2.5), atol=1e-6)


def test_spacing_that_changes_is_refused_or_resampled(tmp_path):
    datasets = series()
    for k, dataset in enumerate(datasets):
        dataset.ImagePositionPatient[2] = 100 + 5 * k + 5 * max(0, k - 6)
    place = slope_of_space(datasets)
    folder = store(datasets, tmp_path / "a")
    assert refused(folder).code == "GEOM_VARIABLE_SPACING"
    volume = read_series(folder, repair=True)
    np.testing.assert_allclose(volume.geometry.spacing, (0.9, 0.8, 5))
    at = volume.geometry.to_world(np.stack(np.indices(volume.geometry.shape), axis=-1))
    np.testing.assert_allclose(volume.array[0], place(at), atol=0.11)


def test_rounded_positions_are_no_uneven_spacing(tmp_path):
    datasets = series(step=1.0 / 3)
    for dataset in datasets:
        dataset.ImagePositionPatient = [f"{mm:.2f}" for mm in map(float, dataset.ImagePositionPatient)]
    assert read_series(store(datasets, tmp_path / "a")).geometry.spacing[2] == pytest.approx(1 / 3, abs=1e-3)


@pytest.mark.parametrize(
    "tags",
    [{"TemporalPositionIdentifier": 2}, {"AcquisitionNumber": 2}, {"AcquisitionTime": "101500"}, {"InstanceNumber": 0}],
)
def test_two_passes_in_one_series_are_two_volumes(tmp_path, tags):
    first, second = series(), series(body() + 7)
    for number, dataset in enumerate(second):
        dataset.SOPInstanceUID += ".1"
        for keyword, value in tags.items():
            setattr(dataset, keyword, value if keyword != "InstanceNumber" else 13 + number)
    if "TemporalPositionIdentifier" in tags:
        for dataset in first:
            dataset.TemporalPositionIdentifier = 1
    folder = store(first + second, tmp_path / "a")
    assert refused(folder).code == "SEVERAL_VOLUMES"
    np.testing.assert_array_equal(read_series(folder, volume=0).array[0], body())
    np.testing.assert_array_equal(read_series(folder, volume=1).array[0], body() + 7)


def test_passes_of_unequal_length_are_refused(tmp_path):
    second = series(body() + 7, AcquisitionNumber=2)[:-2]
    for dataset in second:
        dataset.SOPInstanceUID += ".1"
    assert refused(store(series() + second, tmp_path / "a")).code == "DUP_POSITION"


def test_a_localizer_is_passed_over(tmp_path):
    scout = series(orientation=CORONAL, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])[0]
    scout.SOPInstanceUID += ".1"
    stray = series(orientation=(0, 1, 0, 0, 0, -1))[0]
    stray.SOPInstanceUID += ".2"
    volume = read_series(store([*series(), scout, stray], tmp_path / "a"))
    np.testing.assert_array_equal(volume.array[0], body())
    assert volume.source.warnings == (
        "passed over: 1 localizers",
        "passed over: 1 single slices across a volume of the same series",
    )


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
@pytest.mark.parametrize("value", [None, "", "1", ["nan", "0"]])
def test_a_slice_that_does_not_say_where_it_lies_is_refused(tmp_path, keyword, value):
    datasets = series()
    delattr(datasets[3], keyword)
    if value is not None:
        datasets[3].add(DataElement(keyword, "LO", value))  # a text: nothing checks it on the way out
    error = refused(store(datasets, tmp_path / "a"))
    assert error.code in {"NO_POSITION", "SEVERAL_SERIES"}  # another orientation or spacing splits the slice off
    assert error.code == "NO_POSITION" or "NO_POSITION" in error.hint


def test_positions_come_before_instance_numbers(tmp_path):
    datasets = series()
    for dataset, number in zip(datasets, np.random.default_rng(1).permutation(12), strict=True):
        dataset.InstanceNumber = int(number)
    np.testing.assert_array_equal(read_series(store(datasets, tmp_path / "a")).array[0], body())


@pytest.mark.parametrize("mixed", [{"PixelSpacing": [0.8, 1.0]}, {"ImageOrientationPatient": [*CORONAL]}])
def test_slices_of_another_kind_are_never_mixed_in(tmp_path, mixed):
    others = series(uid="1.2.826.0.1.3680043.8.498.1", **mixed)[5:8]
    datasets = series()
    error = refused(store(datasets[:5] + others + datasets[8:], tmp_path / "a"))
    assert error.code == "SEVERAL_SERIES"
    assert "GEOM_MISSING_SLICE" in error.hint


def test_a_mixed_matrix_is_never_one_volume(tmp_path):
    error = refused(store(series()[:6] + series(body((32, 32, 12)))[6:], tmp_path / "a"))
    assert error.code == "SEVERAL_SERIES"


def test_mixed_frames_of_reference_are_refused(tmp_path):
    datasets = series()
    for dataset in datasets[6:]:
        dataset.FrameOfReferenceUID += ".1"
    assert refused(store(datasets, tmp_path / "a")).code == "MIXED_FRAME_OF_REFERENCE"


def test_axes_that_are_not_at_right_angles_are_refused(tmp_path):
    error = refused(store(series(orientation=(1, 0, 0, 0.5, 0.8, 0)), tmp_path / "a"))
    assert error.code == "GEOM_ORIENTATION"


def test_slices_beside_one_line_are_refused(tmp_path):
    datasets = series()
    datasets[5].ImagePositionPatient[0] += 3
    assert refused(store(datasets, tmp_path / "a")).code == "GEOM_NOT_ALIGNED"


def test_two_slices_need_something_that_confirms_their_distance(tmp_path):
    datasets = series()[:2]
    assert read_series(store(datasets, tmp_path / "a")).geometry.shape == (40, 32, 2)
    for dataset in datasets:
        del dataset.SliceThickness
    folder = store(datasets, tmp_path / "b")
    assert refused(folder).code == "GEOM_TOO_FEW_SLICES"
    assert read_series(folder, repair=True).geometry.shape == (40, 32, 2)


def test_one_slice_is_a_volume_and_said(tmp_path):
    volume = read_series(store(series()[:1], tmp_path / "a"))
    assert volume.geometry.shape == (40, 32, 1)
    assert volume.source.warnings == ("holds one slice; it is taken to be 2.5 mm thick",)


def test_everything_that_is_no_image_is_passed_over_and_counted(tmp_path):
    folder = store(series(), tmp_path / "a" / "deep" / "deeper")
    root = tmp_path / "a"
    (root / "notes.txt").write_text("nothing")
    (root / "empty").touch()
    (root / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM" + b"\x02\0\x10\0UI\x14\x001.2.840.10008.1.2.1\0")
    (root / "loop").symlink_to(root, target_is_directory=True)
    (root / "gone").symlink_to(root / "nowhere")
    os.mkfifo(root / "pipe")
    found = survey(root)
    assert dict(found.passed) == {
        "files of other kinds": 1,
        "empty files": 1,
        "DICOM objects without pixels": 1,
        "folders met twice through links": 1,
        "links that lead nowhere": 1,
        "pipes, sockets and devices": 1,
    }
    np.testing.assert_array_equal(read_series(root).array, read_series(folder).array)


def test_a_zip_archive_is_read_like_a_folder(tmp_path):
    folder = store(series(), tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "study.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.iterdir():
            archive.write(path, f"PATIENT/{path.stem}")
        archive.writestr("../../evil.txt", "nothing")
    volume = read_series(tmp_path / "study.zip")
    np.testing.assert_array_equal(volume.array[0], body())
    assert sorted(tmp_path.iterdir()) == [tmp_path / "a", tmp_path / "study.zip"]


def test_a_single_file_is_read_too(tmp_path):
    dataset = series()[0]
    dataset.save_as(tmp_path / "one.dcm", enforce_file_format=True)
    assert read_series(tmp_path / "one.dcm").geometry.shape == (40, 32, 1)


def test_files_without_preamble_are_found(tmp_path):
    datasets = series()
    (tmp_path / "a").mkdir()
    for k, dataset in enumerate(datasets):
        del dataset.file_meta
        dataset.save_as(tmp_path / "a" / str(k), implicit_vr=k % 2 == 0, little_endian=True)
    np.testing.assert_array_equal(read_series(tmp_path / "a").array[0], body())


def test_an_implicit_syntax_makes_no_difference(tmp_path):
    datasets = series()
    for dataset in datasets:
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    np.testing.assert_array_equal(read_series(store(datasets, tmp_path / "a")).array[0], body())


def test_the_table_says_what_each_series_is(tmp_path):
    store(series(slant=(0, 0.67, 0)), tmp_path / "a")
    (row,) = survey(tmp_path / "a").rows
    assert row.line().startswith("1  CT  body  12 slices  0.9 x 0.8 x 2.5 mm  ok, tilted by 15.0 degrees (GEOM_TILT)")
    assert choose(survey(tmp_path / "a")).number == 1


def test_steps_that_creep_are_no_even_spacing(tmp_path):
    datasets = series(np.zeros((4, 4, 80), np.int16))
    for k, dataset in enumerate(datasets):
        dataset.ImagePositionPatient[2] = round(5 * k + 0.04 * max(0, k - 40), 3)  # each within 1 % of the others
    assert refused(store(datasets, tmp_path / "a")).code == "GEOM_VARIABLE_SPACING"

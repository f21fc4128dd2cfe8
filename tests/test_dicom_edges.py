"""What a suspicious reader of the DICOM code tried: values, places and files that are nearly right."""

import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from phantoms import body, series, store
from pydicom import DataElement, Dataset, Sequence
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import ExplicitVRBigEndian, JPEGLSLossless, RLELossless
from test_dicom_series import refused
from test_dicom_values import with_pixels

from medseg import read
from medseg.dicom.frames import Producer
from medseg.dicom.results import encode
from medseg.dicom.series import read_series, survey
from medseg.errors import UsageError
from medseg.plan import Label
from medseg.volume import LabelMap

GROUPS = "1.2.840.10008.5.1.4.1.1.2.1"  # Enhanced CT


def code_of(datasets, folder, **options) -> str:
    return refused(store(datasets, folder), **options).code


def text(keyword, value) -> DataElement:
    """Return an element that holds any text: nothing checks it on the way out."""
    return DataElement(keyword, "LT", value)


def enhanced(array=None, *, order=None, **tags) -> Dataset:
    """Return an enhanced CT of the slices of `body`, in any order of frames, each with a slope of its own."""
    slices = series(array)
    order = list(range(len(slices)) if order is None else order)
    whole = slices[0]
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = GROUPS
    whole.NumberOfFrames = len(order)
    whole.PixelData = b"".join(slices[k].PixelData for k in order)
    whole.PerFrameFunctionalGroupsSequence = Sequence([_group(slices[k]) for k in order])
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleSlope",
        "SliceThickness",
    ):
        if keyword in whole:
            del whole[keyword]
    for keyword, value in tags.items():
        setattr(whole, keyword, value)
    return whole


def _group(plane) -> Dataset:
    group = Dataset()
    for sequence, keywords in (
        ("PlanePositionSequence", ["ImagePositionPatient"]),
        ("PlaneOrientationSequence", ["ImageOrientationPatient"]),
        ("PixelMeasuresSequence", ["PixelSpacing", "SliceThickness"]),
        ("PixelValueTransformationSequence", ["RescaleSlope", "RescaleIntercept"]),
    ):
        item = Dataset()
        for keyword in keywords:
            setattr(item, keyword, plane[keyword].value)
        setattr(group, sequence, Sequence([item]))
    return group


@pytest.mark.parametrize("value", ["0,5", "nan", "1e400", "abc", "0", "2e9", "1_0", "2\\3"])
def test_a_slope_that_is_no_number_is_never_one(tmp_path, value):
    datasets = series()
    datasets[3].add(text("RescaleSlope", value))
    assert code_of(datasets, tmp_path / "a") == "RESCALE"


def test_slope_and_intercept_are_in_all_slices_or_in_none(tmp_path):
    datasets = series()
    del datasets[5].RescaleSlope, datasets[5].RescaleIntercept
    assert code_of(datasets, tmp_path / "a") == "RESCALE"


def test_stored_bits_may_differ_from_slice_to_slice(tmp_path):
    planes = np.full((4, 6, 8), 40000, np.uint16)
    planes[0] = 100
    datasets = with_pixels(planes)
    datasets[0].BitsStored, datasets[0].HighBit = 12, 11
    array = read_series(store(datasets, tmp_path / "a")).array[0]
    assert (array[..., 0] == 100 - 1024).all()
    assert (array[..., 1:] == 40000 - 1024).all()


@pytest.mark.parametrize("bits", [0, 17, 65535])
def test_stored_bits_that_cannot_be_are_refused(tmp_path, bits):
    assert code_of(series(BitsStored=bits), tmp_path / "a") == "PIXEL_FORMAT"


@pytest.mark.parametrize("changed", [{"Rows": 16}, {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}])
def test_more_pixels_than_declared_are_refused(tmp_path, changed):
    assert code_of(series(**changed), tmp_path / "a") == "PIXEL_LENGTH"


@pytest.mark.parametrize("value", ["abc", "0", "-3", "1.5"])
def test_a_number_of_frames_that_is_none_is_refused(tmp_path, value):
    datasets = series()
    datasets[2].add(text("NumberOfFrames", value))
    assert code_of(datasets, tmp_path / "a") == "DICOM_DAMAGED"


def test_bytes_stored_as_big_endian_words_change_places(tmp_path):
    planes = np.arange(4 * 6 * 8, dtype=np.uint8).reshape(4, 6, 8)
    datasets = with_pixels(planes, RescaleIntercept="0")
    (tmp_path / "a").mkdir()
    for k, dataset in enumerate(datasets):
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        swapped = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
        dataset.add_new("PixelData", "OW", swapped)
        dataset.save_as(tmp_path / "a" / str(k), implicit_vr=False, little_endian=False, enforce_file_format=True)
    np.testing.assert_array_equal(read_series(tmp_path / "a").array[0].transpose(2, 1, 0), planes)


def test_padding_of_small_integers_becomes_air(tmp_path):
    planes = np.full((4, 6, 8), 20, np.int8)
    planes[:, 0] = -100
    datasets = with_pixels(planes, RescaleIntercept="0")
    for dataset in datasets:
        dataset.add_new("PixelPaddingValue", "SS", -100)
    array = read_series(store(datasets, tmp_path / "a")).array[0]
    assert (array[:, 0] == -1024).all()
    assert (array[:, 1:] == 20).all()


def test_an_unsigned_tilted_ct_has_air_outside(tmp_path):
    planes = np.full((4, 16, 18), 30, np.uint16)
    datasets = with_pixels(planes, RescaleIntercept="0")
    for k, dataset in enumerate(datasets):
        dataset.ImagePositionPatient[1] += 0.67 * k
    array = read_series(store(datasets, tmp_path / "a")).array
    assert array.min() == -1024
    assert array.max() == 30


def test_a_repeated_slice_with_padding_is_still_the_same(tmp_path):
    planes = np.random.default_rng(0).integers(5, 90, (5, 6, 8)).astype(np.int16)
    planes[:, 0] = -2000
    datasets = with_pixels(planes, Modality="MR", RescaleIntercept="0")
    for dataset in datasets:
        dataset.add_new("PixelPaddingValue", "SS", -2000)
    twin = with_pixels(planes, Modality="MR", RescaleIntercept="0")[3]
    twin.add_new("PixelPaddingValue", "SS", -2000)
    assert read_series(store([*datasets, twin], tmp_path / "a")).geometry.shape[2] == 5


def test_units_that_differ_are_refused(tmp_path):
    datasets = series(Modality="PT", Units="BQML")
    datasets[4].Units = "GML"
    assert code_of(datasets, tmp_path / "a") == "MIXED_UNITS"


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("what", ["TemporalPositionIdentifier", "DiffusionBValue"])
def test_moments_at_other_positions_are_never_one_volume(tmp_path, behind, what):
    first, second = series(), series(body() + 7, origin=(-16, -14.4, 130 if behind else 101.25))
    for number, datasets in enumerate((first, second), start=1):
        for dataset in datasets:
            setattr(dataset, what, number)
            dataset.SOPInstanceUID += f".{number}"
    assert code_of(first + second, tmp_path / "a") == "SEVERAL_VOLUMES"
    np.testing.assert_array_equal(read_series(tmp_path / "a", volume=1).array[0], body() + 7)


def test_acquisitions_that_alternate_are_said(tmp_path):
    second = series(body() + 7, origin=(-16, -14.4, 101.25), AcquisitionNumber=2)
    for dataset in second:
        dataset.SOPInstanceUID += ".1"
    volume = read_series(store(series() + second, tmp_path / "a"))
    assert "slices of 2 acquisitions alternate" in volume.source.warnings[0]


def test_two_patients_under_one_series_uid_are_two_volumes(tmp_path):
    second = series(origin=(-16, -14.4, 130), PatientID="P2")
    assert code_of(series() + second, tmp_path / "a") == "SEVERAL_SERIES"


def test_copies_do_not_hide_the_moments(tmp_path):
    second = series(body() + 7, AcquisitionNumber=2)
    for dataset in second:
        dataset.SOPInstanceUID += ".1"
    folder = store(series() + second + series()[3:4], tmp_path / "a")
    assert refused(folder).code == "SEVERAL_VOLUMES"
    volume = read_series(folder, volume=0)
    assert volume.source.warnings == ("1 slices repeat another one and were passed over",)


def test_axes_rounded_in_the_header_are_made_right(tmp_path):
    datasets = series(orientation=(0.9995, 0.0005, 0, 0, 1.0005, 0))
    grid = read_series(store(datasets, tmp_path / "a")).geometry
    np.testing.assert_allclose(grid.spacing, (0.9, 0.8, 2.5), rtol=1e-6)
    assert grid.shear < 1e-6
    assert code_of(series(orientation=(0.992, 0, 0, 0, 1, 0)), tmp_path / "b") == "GEOM_ORIENTATION"


def test_spacings_rounded_in_the_header_are_one_volume(tmp_path):
    datasets = series(spacing=(0.97655, 0.97655))
    datasets[4].PixelSpacing = [0.976549, 0.976549]
    assert read_series(store(datasets, tmp_path / "a")).geometry.shape == (40, 32, 12)


def test_a_spacing_that_contradicts_two_slices_is_believed(tmp_path):
    datasets = series(SpacingBetweenSlices="2.5", SliceThickness="5")
    assert code_of(datasets[:3:2], tmp_path / "a") == "GEOM_TOO_FEW_SLICES"
    volume = read_series(store(datasets[::2], tmp_path / "b"))
    assert volume.source.warnings == ("its header says 2.5 mm between slices, they lie 5 mm apart",)


def test_repair_adds_no_more_than_there_is(tmp_path):
    datasets = series()[:4]
    datasets[3].ImagePositionPatient[2] = 1e8
    error = refused(store(datasets, tmp_path / "a"), repair=True)
    assert error.code == "GEOM_MISSING_SLICE"
    assert "--repair" in error.hint


@pytest.mark.parametrize("order", [None, [3, 0, 7, 1, 2, 11, 4, 5, 6, 10, 9, 8]])
@pytest.mark.parametrize("syntax", [None, RLELossless, JPEGLSLossless])
def test_enhanced_frames_lie_where_they_say(tmp_path, order, syntax):
    whole = enhanced(order=order)
    if syntax:
        whole.compress(syntax, generate_instance_uid=False)
    volume = read_series(store([whole], tmp_path / "a"))
    np.testing.assert_array_equal(volume.array[0], body())
    np.testing.assert_allclose(volume.geometry.spacing, (0.9, 0.8, 2.5))
    assert [frame.number for frame in volume.source.stack.frames] == [*(np.argsort(order or range(12)) + 1)]


def test_an_enhanced_object_without_groups_for_each_frame_is_damaged(tmp_path):
    assert code_of([enhanced(NumberOfFrames=11)], tmp_path / "a") == "DICOM_DAMAGED"


def test_a_slope_at_the_top_of_an_enhanced_object_counts(tmp_path):
    whole = enhanced(RescaleSlope="2", RescaleIntercept="-5")
    for group in whole.PerFrameFunctionalGroupsSequence:
        del group.PixelValueTransformationSequence
    array = read_series(store([whole], tmp_path / "a")).array[0]
    np.testing.assert_array_equal(array, (body() + 1024) * 2 - 5)


def test_an_enhanced_object_twice_is_read_once(tmp_path):
    volume = read_series(store([enhanced(), enhanced()], tmp_path / "a"))
    np.testing.assert_array_equal(volume.array[0], body())


@pytest.mark.parametrize("kind", ["1.2.840.10008.5.1.4.1.1.481.2", "1.2.840.10008.5.1.4.1.1.3.1"])
def test_objects_that_are_no_scans_spoil_no_folder(tmp_path, kind):
    other = series()[0]
    other.SOPClassUID, other.SeriesInstanceUID, other.SOPInstanceUID = kind, "1.2.3", "1.2.4"
    other.NumberOfFrames = 2
    other.PixelData += other.PixelData
    np.testing.assert_array_equal(read_series(store([*series(), other], tmp_path / "a")).array[0], body())


@pytest.mark.parametrize("damage", ["rows", "bits", "short"])
def test_a_compressed_stream_must_be_what_its_header_says(tmp_path, damage):
    datasets = series()
    for dataset in datasets:
        dataset.compress(JPEGLSLossless, generate_instance_uid=False)
    if damage == "rows":
        for dataset in datasets:
            dataset.Rows = 30
    elif damage == "bits":
        for dataset in datasets:
            dataset.BitsAllocated = dataset.BitsStored = 8
            dataset.HighBit = 7
    else:
        (frame,) = generate_frames(datasets[5].PixelData, number_of_frames=1)
        datasets[5].PixelData = encapsulate([frame[: len(frame) // 2]])
    assert code_of(datasets, tmp_path / "a") == "PIXEL_DAMAGED"


def test_what_may_have_been_a_slice_is_said(tmp_path):
    folder = store(series()[:-1], tmp_path / "a")
    (folder / "gone.dcm").symlink_to(folder / "nowhere")
    (folder / "empty.dcm").touch()
    (folder / "short.dcm").write_bytes(bytes(100))
    assert read_series(folder).source.warnings == (
        "passed over: 1 empty files",
        "passed over: 1 files cut short",
        "passed over: 1 links that lead nowhere",
    )


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_of_one_name_are_refused(tmp_path):
    datasets = series()
    folder = store(datasets, tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, "slice.dcm")
    assert refused(tmp_path / "a.zip").code == "ARCHIVE"


def test_a_low_limit_of_memory_does_not_stop_the_decoder(tmp_path):
    datasets = series()
    for dataset in datasets:
        dataset.compress(RLELossless, generate_instance_uid=False)
    folder = store(datasets, tmp_path / "a")
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30)); import medseg;"
        f" print(medseg.read({str(folder)!r}).array.max())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == f"{body().max()}\n", done.stderr


def test_slices_that_share_one_uid_carry_no_dicom_result(tmp_path):
    datasets = series()
    for dataset in datasets:
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    scan = read_series(store(datasets, tmp_path / "a"))
    labels = LabelMap(np.ones(scan.geometry.shape, np.uint8), scan.geometry, (Label(value=1, name="all"),), scan.source)
    with pytest.raises(UsageError, match="share one SOPInstanceUID"):
        encode(["dicom-seg"], labels, Producer("tiny", "1", ""))


def test_what_a_header_holds_steers_no_terminal(tmp_path):
    datasets = series()
    for dataset in datasets:
        dataset.add(text("Modality", "CT\x1b[2J"))
        dataset.add(text("SeriesDescription", "x\x1b[31m" + "y" * 500))
    (row,) = survey(store(datasets, tmp_path / "a")).rows
    assert row.line().isprintable()
    assert len(row.line()) < 200


def test_a_pipe_is_no_scan(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe").code == "NOT_A_FILE"


def test_a_preamble_that_says_tiff_is_still_dicom(tmp_path, bundle_file, run):
    folder = store(series(), tmp_path / "study", suffix="")
    for path in folder.iterdir():
        content = path.read_bytes()
        path.write_bytes(b"II*\0" + content[4:])
    np.testing.assert_array_equal(read(folder).array[0], body())
    assert read(next(folder.iterdir())).geometry.shape == (40, 32, 1)
    assert run("predict", folder, "-m", bundle_file())[0] == 0


def test_a_little_padding_behind_the_pixels_is_said(tmp_path):
    datasets = series()
    datasets[4].PixelData += bytes(20)
    volume = read_series(store(datasets, tmp_path / "a"))
    np.testing.assert_array_equal(volume.array[0], body())
    assert volume.source.warnings == ("slice 5 holds 20 bytes behind its pixels",)


def test_a_radiograph_is_a_picture_and_two_are_two(tmp_path):
    views = []
    for k, dataset in enumerate(series()[:2]):
        dataset.SOPClassUID, dataset.Modality = "1.2.840.10008.5.1.4.1.1.1.1", "DX"
        del dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.PixelSpacing
        dataset.SOPInstanceUID = f"1.2.3.{k}"
        views.append(dataset)
    picture = read_series(store(views[:1], tmp_path / "one"))
    assert not picture.geometry.physical
    np.testing.assert_array_equal(picture.array[0, ..., 0], body()[..., 0])
    assert code_of(views, tmp_path / "two") == "SEVERAL_SERIES"
    assert read_series(tmp_path / "two", series="2").geometry.shape == (40, 32, 1)

"""Stored pixels into physical values: bits, signs, slopes, padding, colours, compression, PET."""

import shutil
import subprocess

import numpy as np
import pytest
from phantoms import body, series, store
from pydicom import Dataset
from pydicom.uid import ExplicitVRBigEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from medseg.dicom.series import read_series
from medseg.errors import ScanError


def refused(folder, **options) -> ScanError:
    with pytest.raises(ScanError) as caught:
        read_series(folder, **options)
    return caught.value


def with_pixels(planes, **tags):
    """Return a series whose slices hold the stored values given, (slices, rows, columns) of any integer type."""
    datasets = series(np.zeros((planes.shape[2], planes.shape[1], planes.shape[0]), np.int16), **tags)
    for dataset, plane in zip(datasets, planes, strict=True):
        dataset.BitsAllocated = plane.dtype.itemsize * 8
        dataset.PixelRepresentation = int(plane.dtype.kind == "i")
        if "BitsStored" not in tags:
            dataset.BitsStored, dataset.HighBit = dataset.BitsAllocated, dataset.BitsAllocated - 1
        dataset.PixelData = plane.astype(plane.dtype.newbyteorder("<")).tobytes()
    return datasets


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32])
def test_every_integer_type_is_read_to_its_limits(tmp_path, dtype):
    limits = np.iinfo(dtype)
    planes = np.random.default_rng(0).integers(limits.min, limits.max, (4, 6, 8), dtype, endpoint=True)
    planes[0, 0, :2] = limits.min, limits.max
    datasets = with_pixels(planes, RescaleIntercept="0")
    array = read_series(store(datasets, tmp_path / "a")).array[0]
    assert array.dtype == dtype
    np.testing.assert_array_equal(array.transpose(2, 1, 0), planes)


@pytest.mark.parametrize(("slope", "intercept", "dtype"), [("1", "-1024", "i2"), ("3", "0", "i4"), ("0.5", "-7", "f4")])
def test_rescaling_keeps_whole_numbers_whole(tmp_path, slope, intercept, dtype):
    planes = np.arange(4 * 6 * 8, dtype=np.uint16).reshape(4, 6, 8) * 150
    datasets = with_pixels(planes, RescaleSlope=slope, RescaleIntercept=intercept)
    array = read_series(store(datasets, tmp_path / "a")).array[0]
    assert array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(array.transpose(2, 1, 0), planes * float(slope) + float(intercept))


def test_each_slice_has_its_own_slope(tmp_path):
    planes = np.full((4, 6, 8), 100, np.uint16)
    datasets = with_pixels(planes)
    for k, dataset in enumerate(datasets):
        dataset.RescaleSlope, dataset.RescaleIntercept = str(k + 0.5), str(-k)
    array = read_series(store(datasets, tmp_path / "a")).array[0]
    np.testing.assert_array_equal(array[0, 0], [50, 149, 248, 347])


@pytest.mark.parametrize("signed", [True, False])
def test_bits_that_are_not_stored_count_for_nothing(tmp_path, signed):
    wanted = np.arange(-300, -300 + 4 * 6 * 8).reshape(4, 6, 8) if signed else np.arange(4 * 6 * 8).reshape(4, 6, 8)
    dirty = (wanted & 0xFFF) | 0xA000  # an overlay in the high bits
    tags = {"BitsStored": 12, "HighBit": 11, "RescaleIntercept": "0"}
    planes = dirty.astype(np.uint16).view(np.int16 if signed else np.uint16)
    array = read_series(store(with_pixels(planes, **tags), tmp_path / "a")).array[0]
    np.testing.assert_array_equal(array.transpose(2, 1, 0), wanted)


def test_a_high_bit_that_is_not_the_last_shifts_the_values(tmp_path):
    wanted = np.arange(4 * 6 * 8, dtype=np.uint16).reshape(4, 6, 8)
    tags = {"BitsStored": 12, "HighBit": 15, "RescaleIntercept": "0"}
    array = read_series(store(with_pixels(wanted << 4, **tags), tmp_path / "a")).array[0]
    np.testing.assert_array_equal(array.transpose(2, 1, 0), wanted)


def test_padding_becomes_air_in_ct_and_the_lowest_value_elsewhere(tmp_path):
    planes = np.random.default_rng(0).integers(24, 2000, (4, 6, 8), np.int16)
    planes[:, 0] = -2000
    datasets = with_pixels(planes)
    for dataset in datasets:
        dataset.add_new("PixelPaddingValue", "SS", -2000)
    volume = read_series(store(datasets, tmp_path / "ct"))
    assert (volume.array[0, :, 0] == -1024).all()
    np.testing.assert_array_equal(volume.array[0, :, 1:].transpose(2, 1, 0), planes[:, 1:] - 1024)
    assert volume.source.warnings == ("32 voxels are padding; they are taken as -1024",)
    for dataset in datasets:
        dataset.Modality, dataset.RescaleIntercept = "MR", "0"
    volume = read_series(store(datasets, tmp_path / "mr"))
    assert (volume.array[0, :, 0] == planes[:, 1:].min()).all()


def test_a_padding_value_of_the_wrong_sign_is_understood(tmp_path):
    planes = np.full((4, 6, 8), 100, np.int16)
    planes[:, 0] = -2000
    datasets = with_pixels(planes)
    for dataset in datasets:
        dataset.add_new("PixelPaddingValue", "US", 65536 - 2000)
    assert (read_series(store(datasets, tmp_path / "a")).array[0, :, 0] == -1024).all()


def test_a_padding_range_is_padding_from_end_to_end(tmp_path):
    planes = np.arange(4 * 6 * 8, dtype=np.uint16).reshape(4, 6, 8)
    datasets = with_pixels(planes, RescaleIntercept="0")
    for dataset in datasets:
        dataset.add_new("PixelPaddingValue", "US", 10)
        dataset.add_new("PixelPaddingRangeLimit", "US", 5)
    array = read_series(store(datasets, tmp_path / "a")).array[0].transpose(2, 1, 0)
    assert (array.reshape(-1)[5:11] == -1024).all()
    assert (array.reshape(-1)[[4, 11]] == [4, 11]).all()


def test_monochrome1_changes_no_value(tmp_path):
    volume = read_series(store(series(PhotometricInterpretation="MONOCHROME1"), tmp_path / "a"))
    np.testing.assert_array_equal(volume.array[0], body())
    assert volume.source.low_is_bright  # for pictures


def test_colours_are_channels(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (4, 6, 8, 3), np.uint8)
    for planar in (0, 1):
        datasets = with_pixels(colours[..., 0], SamplesPerPixel=3, PhotometricInterpretation="RGB")
        for dataset, plane in zip(datasets, colours, strict=True):
            dataset.PlanarConfiguration = planar
            dataset.PixelData = (plane.transpose(2, 0, 1) if planar else plane).tobytes()
        array = read_series(store(datasets, tmp_path / str(planar))).array
        np.testing.assert_array_equal(array.transpose(3, 2, 1, 0), colours)


@pytest.mark.parametrize(
    "tags", [{"PhotometricInterpretation": "PALETTE COLOR"}, {"SamplesPerPixel": 3}, {"BitsAllocated": 1}]
)
def test_pixels_that_mean_no_intensity_are_refused(tmp_path, tags):
    assert refused(store(series(**tags), tmp_path / "a")).code == "PIXEL_FORMAT"


def test_values_that_follow_a_table_are_refused(tmp_path):
    assert refused(store(series(ModalityLUTSequence=[Dataset()]), tmp_path / "a")).code == "MODALITY_LUT"


def test_mosaics_are_refused_by_name(tmp_path):
    tags = {"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}
    assert refused(store(series(**tags), tmp_path / "a")).code == "MOSAIC"


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.uint8])
def test_compressed_slices_hold_what_was_stored(tmp_path, syntax, dtype):
    if syntax == JPEG2000Lossless:
        pytest.importorskip("openjpeg")
    planes = np.random.default_rng(0).integers(0, 200, (18, 40, 48)).astype(dtype) - (50 if dtype == np.int16 else 0)
    datasets = with_pixels(planes.astype(dtype), RescaleIntercept="0")
    for dataset in datasets:
        dataset.compress(syntax, generate_instance_uid=False)
    array = read_series(store(datasets, tmp_path / "a")).array[0]
    np.testing.assert_array_equal(array.transpose(2, 1, 0), planes)


@pytest.mark.parametrize("option", ["+e1", "+el"])  # JPEG lossless of first order, and with any predictor
def test_lossless_jpeg_of_another_writer_is_read(tmp_path, option):
    program = shutil.which("dcmcjpeg")
    if not program:
        pytest.skip("dcmcjpeg (Debian: dcmtk) is not installed")
    folder = store(series(), tmp_path / "a")
    (tmp_path / "b").mkdir()
    for path in folder.iterdir():
        subprocess.run([program, option, path, tmp_path / "b" / path.name], check=True)
    np.testing.assert_array_equal(read_series(tmp_path / "b").array[0], body())


def test_big_endian_is_read(tmp_path):
    datasets = series()
    for dataset in datasets:
        swapped = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        dataset.PixelData = swapped
    folder = tmp_path / "a"
    folder.mkdir()
    for k, dataset in enumerate(datasets):
        dataset.save_as(folder / str(k), implicit_vr=False, little_endian=False, enforce_file_format=True)
    np.testing.assert_array_equal(read_series(folder).array[0], body())


def pet(**tags):
    item = Dataset()
    item.RadionuclideTotalDose, item.RadionuclideHalfLife = "400000000", "6586.2"
    item.RadiopharmaceuticalStartTime = "091112"
    known = {
        "Modality": "PT", "Units": "BQML", "CorrectedImage": ["DECY", "ATTN"], "DecayCorrection": "START",
        "PatientWeight": "80", "RadiopharmaceuticalInformationSequence": [item], "RescaleIntercept": "0",
        "RescaleSlope": "2", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.128",
    }  # fmt: skip
    return series(np.full((8, 6, 5), -924, np.int16), **{**known, **tags})


def test_suv_is_activity_by_weight_over_decayed_dose(tmp_path):
    folder = store(pet(), tmp_path / "a")
    assert (read_series(folder).array == 200).all()  # Bq/mL
    decayed = 400e6 * 0.5 ** (3600 / 6586.2)  # an hour after the injection
    np.testing.assert_allclose(read_series(folder, suv=True).array, 200 * 80000 / decayed, rtol=1e-6)
    folder = store(pet(DecayCorrection="ADMIN"), tmp_path / "b")
    np.testing.assert_allclose(read_series(folder, suv=True).array, 200 * 80000 / 400e6, rtol=1e-6)


@pytest.mark.parametrize(
    "tags",
    [
        {"Units": "CNTS"}, {"CorrectedImage": ["ATTN"]}, {"PatientWeight": None}, {"DecayCorrection": "NONE"},
        {"RadiopharmaceuticalInformationSequence": []}, {"SeriesTime": ""}, {"SeriesTime": "111111"},
        {"PatientWeight": "0"}, {"Modality": "CT"},
    ],
)  # fmt: skip
def test_suv_is_never_guessed(tmp_path, tags):
    assert refused(store(pet(**tags), tmp_path / "a"), suv=True).code == "NO_SUV"

"""A picture as a Secondary Capture: the banner is there, nothing is hidden, and the object passes the validator."""

import io
import shutil
import subprocess

import numpy as np
import pytest
from phantoms import series, stack_of, store
from PIL import Image
from pydicom import dcmread

from medseg.dicom.capture import encode_capture
from medseg.dicom.frames import Producer
from medseg.errors import UsageError

PRODUCER = Producer("abdomen", "1.2", "ab" * 32)


def png(width=301, height=97, seed=0, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "PNG")
    return buffer.getvalue(), pixels


def stack_in(folder, **tags):
    return stack_of(store(series(**tags), folder / "scan"))


def read(encoded):
    return dcmread(io.BytesIO(encoded))


@pytest.mark.parametrize("size", [(301, 97), (900, 500), (1, 1), (64, 40), (3000, 10)])
def test_the_picture_is_all_there_below_the_banner(tmp_path, size):
    picture, pixels = png(*size)
    dataset = read(encode_capture(picture, stack_in(tmp_path), PRODUCER))
    found = dataset.pixel_array
    height = found.shape[0] - size[1]
    np.testing.assert_array_equal(found[height:, : size[0]], pixels)
    assert height >= 32
    assert found.shape[1] >= size[0]


@pytest.mark.parametrize("width", [1, 64, 600, 3000])
def test_the_banner_is_dark_on_light_and_does_not_touch_its_edges(tmp_path, width):
    found = read(encode_capture(png(width, 20)[0], stack_in(tmp_path), PRODUCER)).pixel_array
    banner = found[:-20]
    dark = banner.max(axis=2) < 60
    assert 0.01 < dark.mean() < 0.3
    assert not dark[[0, -1]].any()
    assert not dark[:, [0, 1, -2, -1]].any()
    assert np.flatnonzero(dark.any(axis=1)).size > 20  # two lines of letters


def test_the_banner_names_model_and_version(tmp_path):
    stack, picture = stack_in(tmp_path), png()[0]
    one = read(encode_capture(picture, stack, PRODUCER)).pixel_array
    for other in (Producer("abdomen", "1.3", "ab" * 32), Producer("thorax", "1.2", "ab" * 32)):
        assert (read(encode_capture(picture, stack, other)).pixel_array[:-97] != one[:-97]).any()


def test_a_long_name_of_a_model_is_shortened(tmp_path):
    encoded = encode_capture(png(40, 40)[0], stack_in(tmp_path), Producer("m" * 500, "1" * 100, "ab" * 32))
    assert read(encoded).Columns < 400


def test_it_says_what_it_is_and_belongs_to_the_patient_and_study_of_the_scan(tmp_path):
    stack = stack_in(tmp_path)
    source, found = dcmread(stack.frames[0].path), read(encode_capture(png()[0], stack, PRODUCER, description="AI"))
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "AccessionNumber", "StudyDate"):
        assert found[keyword].value == source[keyword].value
    assert found.BodyPartExamined == "ABDOMEN"
    assert found.SeriesInstanceUID != source.SeriesInstanceUID
    assert (found.ConversionType, found.BurnedInAnnotation, found.PatientOrientation) == ("WSD", "YES", "")
    assert list(found.ImageType[:2]) == ["DERIVED", "SECONDARY"]
    assert found.SeriesDescription == "AI"
    assert "not for diagnosis" in found.DerivationDescription


def test_uids_depend_on_scan_model_and_description_alone(tmp_path):
    stack = stack_in(tmp_path)

    def uids(*args, **options):
        found = read(encode_capture(*args, **options))
        return found.SOPInstanceUID, found.SeriesInstanceUID

    one = uids(png(seed=0)[0], stack, PRODUCER)
    assert one == uids(png(seed=1)[0], stack, PRODUCER)
    others = [
        uids(png()[0], stack, PRODUCER, description="other"),
        uids(png()[0], stack, Producer("abdomen", "1.3", "ab" * 32)),
        uids(png()[0], stack_in(tmp_path / "2", uid="1.2.3"), PRODUCER),
    ]
    assert len({uid for pair in [one, *others] for uid in pair}) == 8


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA", "I;16"])
def test_every_kind_of_png_is_taken(tmp_path, mode):
    buffer = io.BytesIO()
    Image.new(mode, (30, 20)).save(buffer, "PNG")
    assert read(encode_capture(buffer.getvalue(), stack_in(tmp_path), PRODUCER)).SamplesPerPixel == 3


@pytest.mark.parametrize("picture", [b"", b"\x89PNG\r\n\x1a\n", b"nonsense", png()[0][:200]])
def test_a_picture_that_is_none_is_refused(tmp_path, picture):
    with pytest.raises(UsageError, match="no PNG"):
        encode_capture(picture, stack_in(tmp_path), PRODUCER)


def test_a_picture_that_no_dicom_image_can_hold_is_refused(tmp_path):
    with pytest.raises(UsageError, match="70000"):
        encode_capture(png(70000, 1)[0], stack_in(tmp_path), PRODUCER)


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"BodyPartExamined": ""},
        {"BodyPartExamined": "KNEE"},
        {"BodyPartExamined": "KNEE", "Laterality": "L"},
        {"BodyPartExamined": "HEAD", "Laterality": ""},
        {"PatientName": "Müller^Jürgen", "SpecificCharacterSet": "ISO_IR 100"},
        {"PatientSex": None, "PatientBirthDate": None, "StudyID": None, "StudyTime": None},
    ],
)
def test_the_validator_finds_no_error(tmp_path, tags):
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy is not installed")
    path = tmp_path / "capture.dcm"
    path.write_bytes(encode_capture(png()[0], stack_in(tmp_path, **tags), PRODUCER))
    said = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False).stderr
    assert "SCImage" in said
    assert "Error" not in said


def test_dcmtk_shows_the_same_pixels(tmp_path):
    program = shutil.which("dcmj2pnm")
    if not program:
        pytest.skip("dcmj2pnm is not installed")
    path = tmp_path / "capture.dcm"
    path.write_bytes(encode_capture(png()[0], stack_in(tmp_path), PRODUCER))
    subprocess.run([program, "+on", path, tmp_path / "shown.png"], check=True)
    with Image.open(tmp_path / "shown.png") as shown:
        np.testing.assert_array_equal(np.asarray(shown.convert("RGB")), dcmread(path).pixel_array)

"""A picture of a result as a DICOM Secondary Capture, for archives and viewers that show neither SEG nor report.

Nobody may take it for a finding: a banner above the picture says what it is, in pixels that no viewer can switch off.
"""

from __future__ import annotations

import io
from datetime import datetime

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from medseg import __version__
from medseg.dicom.frames import Producer, result_uid
from medseg.dicom.privacy import quiet
from medseg.dicom.study import UTF_8, fit, inherit, study_header
from medseg.errors import UsageError
from medseg.volume import Stack

SERIES_NUMBER = 903
WARNING = "AI result, not for diagnosis"
_UNPAIRED = (  # body parts (PS3.16 annex L) of which there is one: they must have no laterality
    "ABDOMEN ABDOMENPELVIS BLADDER BRAIN CHEST CHESTABDOMEN CHESTABDPELVIS COLON CSPINE HEAD HEADNECK "
    "HEART LIVER LSPINE LSSPINE MEDIASTINUM NECK NECKCHEST NECKCHESTABDOMEN NECKCHESTABDPELV PANCREAS PELVIS PROSTATE "
    "SKULL SPINE SPLEEN SSPINE STOMACH THYROID TLSPINE TSPINE UTERUS WHOLEBODY"
)
_INK, _PAPER = (0, 0, 0), (255, 196, 0)
_SIZES = (16, 48)  # pixels of the banner's letters in a small and in a large picture
_LARGEST = 65535  # rows or columns


def encode_capture(picture: bytes, stack: Stack, producer: Producer, *, description: str = "") -> bytes:
    """Return a DICOM file: a picture, under a banner, as a Secondary Capture in the study of the scan.

    Parameters
    ----------
    picture : bytes
        A PNG file. Nothing of it is hidden: the banner is put on top of it.
    stack : Stack
        The frames that the result was made from.
    producer : Producer
        The model, named in the banner.
    description : str
        Of the series; the model's name when left out.

    Raises
    ------
    UsageError
        If the picture is no PNG or too large, or the scan lacks its UIDs.
    """
    image = _under_banner(_opened(picture), producer)
    if max(image.size) > _LARGEST:
        raise UsageError(f"a picture of {image.width} x {image.height} pixels", hint="give a smaller picture")
    source = study_header(stack)
    with quiet():
        dataset = inherit(source)
        _describe(dataset, producer, fit(description) or fit(f"medseg {producer.name}"))
        dataset.BodyPartExamined = source.get("BodyPartExamined") or ""
        if dataset.BodyPartExamined not in _UNPAIRED.split():
            dataset.Laterality = source.get("Laterality") or ""
        dataset.SeriesInstanceUID = result_uid(stack, producer, "capture", description, "series")
        dataset.SOPInstanceUID = result_uid(stack, producer, "capture", description)
        _add_pixels(dataset, image)
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        buffer = io.BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _opened(picture: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(picture), formats=["PNG"]) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise UsageError("the picture is no PNG that can be read", hint="give the PNG that medseg drew") from None


def _under_banner(picture: Image.Image, producer: Producer) -> Image.Image:
    """Return a picture with the banner above it; wider than before where the warning needs it."""
    size = min(max(picture.width // 28, _SIZES[0]), _SIZES[1])
    font, small = ImageFont.load_default(size), ImageFont.load_default(size * 3 // 4)
    edge, line = size // 2, size * 5 // 4
    width = max(picture.width, int(font.getlength(WARNING)) + 2 * edge)
    made = fit(f"{producer.name} {producer.version}", 1024)
    while small.getlength(made) > width - 2 * edge:
        made = made[:-4] + "..."
    height = 2 * edge + 2 * line
    image = Image.new("RGB", (width, height + picture.height))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 0, width, height - 1), fill=_PAPER)
    pen.text((edge, edge), WARNING, fill=_INK, font=font)
    pen.text((edge, edge + line), made, fill=_INK, font=small)
    image.paste(picture, (0, height))
    return image


def _describe(dataset: Dataset, producer: Producer, description: str) -> None:
    now = datetime.now().astimezone()
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SpecificCharacterSet = UTF_8
    dataset.Modality = "OT"
    dataset.ConversionType = "WSD"
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.DerivationDescription = fit(f"{WARNING}: labels of {producer.name} {producer.version} on the scan", 1024)
    dataset.BurnedInAnnotation = "YES"
    dataset.PatientOrientation = ""
    dataset.SeriesDescription = description
    dataset.SeriesNumber, dataset.InstanceNumber = SERIES_NUMBER, 1
    dataset.Manufacturer = "medseg"
    dataset.ManufacturerModelName = fit(producer.name)
    dataset.DeviceSerialNumber = fit(producer.sha256)
    dataset.SoftwareVersions = [__version__, fit(producer.version)]
    dataset.ContentDate = dataset.InstanceCreationDate = now.strftime("%Y%m%d")
    dataset.ContentTime = dataset.InstanceCreationTime = now.strftime("%H%M%S")


def _add_pixels(dataset: Dataset, image: Image.Image) -> None:
    pixels = np.asarray(image).tobytes()
    dataset.SamplesPerPixel = 3
    dataset.PhotometricInterpretation = "RGB"
    dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = image.height, image.width
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelRepresentation = 0
    dataset.PixelData = pixels + b"\0" * (len(pixels) % 2)

"""Which kinds of objects are asked for in DIMSE, and in which encodings: an association has room for 128 pairs."""

from __future__ import annotations

from itertools import product

from pydicom import uid

_PLAIN = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian)
_PACKED = (  # as archives keep them, the usual ones first
    uid.JPEG2000Lossless,
    uid.JPEGLosslessSV1,
    uid.RLELossless,
    uid.JPEGLSLossless,
    uid.JPEGBaseline8Bit,
    uid.JPEG2000,
    uid.JPEGExtended12Bit,
    uid.JPEGLossless,
    uid.JPEGLSNearLossless,
    uid.DeflatedExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
)
_CT = (uid.CTImageStorage, uid.EnhancedCTImageStorage, uid.LegacyConvertedEnhancedCTImageStorage)
_MR = (
    uid.MRImageStorage,
    uid.EnhancedMRImageStorage,
    uid.EnhancedMRColorImageStorage,
    uid.LegacyConvertedEnhancedMRImageStorage,
)
_PT = (
    uid.PositronEmissionTomographyImageStorage,
    uid.EnhancedPETImageStorage,
    uid.LegacyConvertedEnhancedPETImageStorage,
)
_RADIOGRAPH = (
    uid.ComputedRadiographyImageStorage,
    uid.DigitalXRayImageStorageForPresentation,
    uid.DigitalXRayImageStorageForProcessing,
)
_BREAST = (
    uid.DigitalMammographyXRayImageStorageForPresentation,
    uid.DigitalMammographyXRayImageStorageForProcessing,
    uid.BreastTomosynthesisImageStorage,
)
_ANGIO = (
    uid.XRayAngiographicImageStorage,
    uid.EnhancedXAImageStorage,
    uid.XRayRadiofluoroscopicImageStorage,
    uid.EnhancedXRFImageStorage,
    uid.XRay3DAngiographicImageStorage,
)
_SOUND = (uid.UltrasoundImageStorage, uid.UltrasoundMultiFrameImageStorage, uid.EnhancedUSVolumeStorage)
_EYE = (
    uid.OphthalmicPhotography8BitImageStorage,
    uid.OphthalmicPhotography16BitImageStorage,
    uid.OphthalmicTomographyImageStorage,
)
_CAPTURE = (
    uid.SecondaryCaptureImageStorage,
    uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    uid.MultiFrameTrueColorSecondaryCaptureImageStorage,
)
_KINDS: dict[str, tuple[uid.UID, ...]] = {
    "CT": _CT,
    "MR": _MR,
    "PT": _PT,
    "NM": (uid.NuclearMedicineImageStorage,),
    "CR": _RADIOGRAPH,
    "DX": _RADIOGRAPH,
    "MG": _BREAST,
    "XA": _ANGIO,
    "RF": _ANGIO,
    "US": _SOUND,
    "OP": _EYE,
    "OPT": _EYE,
    "SEG": (uid.SegmentationStorage,),
    "RTSTRUCT": (uid.RTStructureSetStorage,),
}
KINDS = tuple(dict.fromkeys(kind for kinds in (*_KINDS.values(), _CAPTURE) for kind in kinds))
ENCODINGS = (*_PLAIN, *_PACKED)
_ROOM = 127  # one pair of the 128 is the question itself


def pairs(modality: str) -> list[tuple[uid.UID, list[uid.UID]]]:
    """Return the pairs of kind and encodings to offer for a series of a modality; all kinds for an unknown one.

    One pair for plain pixels, and one for each way of packing, so that the PACS can send an object as it has it.
    """
    kinds = (*_KINDS[modality], *_CAPTURE) if modality in _KINDS else KINDS
    plain = [(kind, [*_PLAIN]) for kind in kinds]
    return [*plain, *((kind, [encoding]) for encoding, kind in product(_PACKED, kinds))][:_ROOM]

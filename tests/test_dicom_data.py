"""Real DICOM series of several makers: equal to the NIfTI that others made of them, or refused with the right code."""

import os
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import SAMPLES
from phantoms import OBLIQUE_AXES, series, store

from medseg.dicom.series import choose, read_series, survey
from medseg.errors import ScanError
from medseg.geometry import Geometry

SERIES = [
    "anatomical/001", "anatomical/001_implicit", "ge/anatomical/001", "ge/anatomical/001_implicit",
    "ge/anatomical/001_single_slice", "ge/dti/001", "ge/dti/001_implicit", "ge/dti/002", "ge/fmri/001",
    "ge/fmri/001_implicit", "generic/anatomical/001", "generic/anatomical/001_implicit",
    "generic/anatomical/002_non_isotropic", "generic/compressed/001", "generic/compressed_j2k/001",
    "generic/compressed_jpeg/001", "generic/compressed_jpegls/001", "generic/compressed_rle/001", "generic/rgb/001",
    "hitachi/anatomical/001", "hitachi/anatomical/001_implicit", "hyperfine/anatomical/001",
    "philips_enhanced/anatomical/001", "philips_enhanced/anatomical/001_implicit", "philips_enhanced/fmri/001",
    "philips_enhanced/fmri/001_implicit", "siemens_multiframe/anatomical/001",
]  # fmt: skip
FAILING = {
    "sliceincrement/001": "GEOM_MISSING_SLICE",
    "sliceincrement/002": "GEOM_MISSING_SLICE",
    "sliceorientation/001": "SEVERAL_SERIES",
    "slicecount/001": "GEOM_TOO_FEW_SLICES",
    "notavolume/001": "DUP_POSITION",
}


def volumes(folder: Path):
    count = len(choose(survey(folder)).placements)
    return [read_series(folder, volume=n if count > 1 else None) for n in range(count)]


def assert_same_world(volume, voxels, affine, *, atol=1e-3):
    """Compare values at the same points in space, whatever the order in which either stores them."""
    grid = Geometry(affine, voxels.shape[:3])
    order = grid.order_to(volume.geometry.orientation)
    assert volume.geometry.distance_to(grid.reordered(order)) < 0.01
    channels = [voxels[name] for name in voxels.dtype.names[:3]] if voxels.dtype.names else [voxels]
    for channel, other in zip(volume.array, channels, strict=True):
        np.testing.assert_allclose(channel, order.apply(other), rtol=1e-6, atol=atol)


@pytest.mark.parametrize("name", SERIES)
def test_each_series_is_the_nifti_that_it_must_become(data, name):
    folder = data / "dicom2nifti" / name
    image = nibabel.load(folder.with_name(folder.name + "_ground_truth.nii.gz"))
    truth = np.asanyarray(image.dataobj)
    found = volumes(folder)
    assert len(found) == (truth.shape[3] if truth.ndim == 4 else 1)
    for n, volume in enumerate(found):
        assert_same_world(volume, truth[..., n] if truth.ndim == 4 else truth, image.affine)


@pytest.mark.parametrize("name", FAILING)
def test_each_failing_series_is_refused_with_its_code(data, name):
    with pytest.raises(ScanError) as caught:
        read_series(data / "dicom2nifti" / "failing" / name)
    assert caught.value.code == FAILING[name]


def test_a_real_tilted_ct_is_straightened(data):
    volume = read_series(data / "dicom2nifti" / "failing" / "gantrytilting" / "001")
    assert volume.source.warnings == (
        "the gantry was tilted by 14.0 degrees (GEOM_TILT); the slices were straightened",
    )
    np.testing.assert_allclose(volume.geometry.spacing, (0.41796875, 0.41796875, 5 * np.cos(np.radians(14))), rtol=1e-5)


@pytest.fixture(scope="session")
def dcm2niix(tmp_path_factory):
    """A function that converts a folder and returns (voxels, affine) of each image that came of it."""
    judges = os.environ.get("MEDSEG_JUDGES")
    if not judges:
        pytest.skip("MEDSEG_JUDGES names no folder of outside judges")

    def convert(folder: Path):
        out = tmp_path_factory.mktemp("dcm2niix")
        shown = "n" if "philips" in str(folder) else "y"  # n: values as shown, but one slope for all slices
        words = [Path(judges) / "dcm2niix", "-o", out, "-f", "%s_%d_%t", "-z", "n", "-p", shown, folder]
        subprocess.run(words, capture_output=True, check=False)
        images = [nibabel.load(path) for path in sorted(out.glob("*.nii"))]
        return [(np.asanyarray(image.dataobj), image.affine) for image in images]

    return convert


@pytest.mark.parametrize("name", [*SERIES, "philips_enhanced/dti/001", "philips_enhanced/dti/001_implicit"])
def test_dcm2niix_sees_the_same_values_in_the_same_places(data, dcm2niix, name):
    folder = data / "dicom2nifti" / name
    judged = dcm2niix(folder)
    if not judged:
        pytest.skip("dcm2niix makes nothing of it")
    voxels, affine = judged[0]
    passes = [voxels[..., n] for n in range(voxels.shape[3])] if voxels.ndim == 4 else [voxels]
    found = volumes(folder)
    assert len(found) == len(passes)
    left = list(range(len(passes)))
    for volume in found:  # it may put the volume without diffusion weight elsewhere
        fits = [n for n in left if same_world(volume, passes[n], affine)]
        assert fits
        left.remove(fits[0])


def same_world(volume, voxels, affine) -> bool:
    try:
        assert_same_world(volume, voxels, affine, atol=2e-2)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"step": 0.7},
        {"orientation": OBLIQUE_AXES},
        {"orientation": (0, 1, 0, 0, 0, -1)},
        {"orientation": (1, 0, 0, 0, 0, -1)},
    ],
)
def test_dcm2niix_agrees_on_made_up_series(tmp_path, dcm2niix, options):
    folder = store(series(**options), tmp_path / "a")
    ((voxels, affine),) = dcm2niix(folder)
    assert_same_world(read_series(folder), voxels, affine)


def test_the_sample_ct_is_what_simpleitk_reads():
    import SimpleITK as sitk

    names = sorted((SAMPLES / "ct_dicom").glob("*.dcm"))
    slices = [sitk.ReadImage(str(name)) for name in names]
    slices.sort(key=lambda image: image.GetOrigin()[2])
    volume = read_series(SAMPLES / "ct_dicom")
    truth = np.concatenate([sitk.GetArrayFromImage(image) for image in slices])
    np.testing.assert_array_equal(volume.array[0].transpose(2, 1, 0), truth)
    first = np.array(slices[0].GetOrigin()) * [-1, -1, 1]
    np.testing.assert_allclose(volume.geometry.origin, first)


def test_the_table_of_a_real_study_names_every_series(data, run):
    code, out, _ = run("info", data / "dicom2nifti" / "ge")
    assert code == 0
    assert out.count("MR") == 7  # two of its folders hold files of one series
    assert "passed over: 22 files of other kinds" in out

"""Writing NIfTI: what other tools read is what we meant, and the same twice."""

import gzip
import zlib

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ORDERS, rotation, smooth_scan
from hypothesis import given
from hypothesis import strategies as st

import medseg
from medseg.geometry import Geometry
from medseg.io import nifti_header
from medseg.plan import Label
from medseg.volume import LabelMap, Volume


def oblique(seed=0, shape=(5, 6, 7)):
    affine = np.eye(4)
    affine[:3, :3] = rotation(seed) * (0.7, 1.2, 3.0)
    affine[:3, 3] = (12.5, -80, 33)
    return Geometry(affine, shape)


def label_map(geometry=None, *, largest=2, source=None, dtype=np.uint8):
    geometry = geometry or oblique()
    array = np.random.default_rng(0).integers(0, largest + 1, geometry.shape).astype(dtype)
    labels = tuple(Label(value=value, name=f"label {value}") for value in range(1, largest + 1))
    return LabelMap(array, geometry, labels[:5], source)


@pytest.mark.parametrize("order", ORDERS)
def test_nibabel_and_simpleitk_see_the_same_points_in_each_of_the_48_orders(tmp_path, order):
    scan = Volume(smooth_scan((5, 6, 7)).array, oblique())
    stored = Volume(order.apply(scan.array), scan.geometry.reordered(order))
    path = tmp_path / "scan.nii.gz"
    medseg.write(stored, path)
    by_nibabel = nibabel.load(path)
    assert np.allclose(by_nibabel.affine, stored.geometry.affine, atol=1e-4)
    assert np.array_equal(np.asarray(by_nibabel.dataobj), stored.array[0])
    by_itk = sitk.ReadImage(path)
    assert np.array_equal(sitk.GetArrayFromImage(by_itk).T, stored.array[0])
    corner = [float(n - 1) for n in stored.geometry.shape]
    lps = by_itk.TransformContinuousIndexToPhysicalPoint(corner)
    assert np.allclose(lps * np.array([-1, -1, 1]), stored.geometry.to_world(corner), atol=1e-3)
    again = medseg.read(path)
    assert np.array_equal(again.array, stored.array)
    assert again.geometry.same_as(stored.geometry, tolerance=1e-4)


@given(seed=st.integers(0, 10**6), flip=st.booleans())
def test_the_qform_says_the_same_as_the_sform(seed, flip):
    affine = np.eye(4)
    affine[:3, :3] = rotation(seed) * (0.7, 1.2, -3.0 if flip else 3.0)
    affine[:3, 3] = (12.5, -80, 33)
    header = nifti_header.build(Geometry(affine, (3, 4, 5)), np.dtype(np.int16), 1)
    by_nibabel = nibabel.Nifti1Header(header[:348])
    cosine = (np.trace(rotation(seed)) - 1) / 2  # near a half turn three float32 numbers cannot say the angle better
    assert np.allclose(by_nibabel.get_qform(), affine, atol=1e-4 if cosine > -0.999 else 4e-3)
    assert np.allclose(by_nibabel.get_sform(), affine, atol=1e-5)


def test_a_half_turn_has_a_quaternion_too():
    for signs in ([1, -1, -1], [-1, 1, -1], [-1, -1, 1]):
        header = nifti_header.build(Geometry(np.diag([*signs, 1.0]), (3, 4, 5)), np.dtype(np.uint8), 1)
        assert np.allclose(nibabel.Nifti1Header(header[:348]).get_qform(), np.diag([*signs, 1]))


def test_a_sheared_grid_is_written_without_a_qform(tmp_path):
    affine = np.eye(4)
    affine[0, 1] = 0.3
    path = tmp_path / "scan.nii"
    medseg.write(Volume(np.ones((1, 3, 4, 5), np.int16), Geometry(affine, (3, 4, 5))), path)
    assert nibabel.load(path).header["qform_code"] == 0
    assert np.allclose(medseg.read(path).geometry.affine, affine)


def test_a_label_map_says_that_it_is_one(tmp_path):
    path = tmp_path / "labels.nii.gz"
    medseg.write(label_map(), path)
    header = nibabel.Nifti1Header(gzip.decompress(path.read_bytes())[:348])  # as it stands in the file
    assert header["intent_code"] == 1002
    assert (header["scl_slope"], header["scl_inter"]) == (1, 0)
    assert header.get_data_dtype() == np.uint8


@pytest.mark.parametrize(("largest", "dtype"), [(2, np.uint8), (255, np.uint8), (256, np.uint16)])
def test_a_label_map_is_stored_in_the_smallest_type_that_holds_it(tmp_path, largest, dtype):
    labels = label_map(Geometry(np.eye(4), (20, 20, 20)), largest=largest, dtype=np.int64)
    path = tmp_path / "labels.nii.gz"
    medseg.write(labels, path)
    assert nibabel.load(path).get_data_dtype() == dtype
    assert np.array_equal(medseg.read_labels(path).array, labels.array)


def test_a_label_map_repeats_the_coordinate_fields_of_its_scan_to_the_bit(tmp_path):
    affine = oblique().affine
    moved = affine.copy()
    moved[:3, 3] += 5
    image = nibabel.Nifti1Image(np.ones((5, 6, 7), np.int16), affine)
    image.set_sform(affine, 4)
    image.set_qform(moved, 2)
    nibabel.save(image, tmp_path / "scan.nii.gz")
    scan = medseg.read(tmp_path / "scan.nii.gz")
    medseg.write(label_map(scan.geometry, source=scan.source), tmp_path / "labels.nii.gz")
    one, two = (nibabel.load(tmp_path / name).header for name in ("scan.nii.gz", "labels.nii.gz"))
    fields = ["qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "xyzt_units"]
    fields += ["qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"]
    for name in fields:
        assert np.array_equal(one[name], two[name]), name
    assert np.array_equal(one["pixdim"][:4], two["pixdim"][:4])


def test_the_coordinate_fields_are_not_repeated_on_another_grid(tmp_path):
    medseg.write(Volume(np.ones((1, 5, 6, 7), np.int16), oblique()), tmp_path / "scan.nii.gz")
    scan = medseg.read(tmp_path / "scan.nii.gz")
    crop = scan.geometry.cropped((1, 1, 1), (4, 5, 6))
    medseg.write(label_map(crop, source=scan.source), tmp_path / "labels.nii.gz")
    assert medseg.read(tmp_path / "labels.nii.gz").geometry.same_as(crop, tolerance=1e-4)


def test_the_same_input_gives_the_same_bytes(tmp_path):
    for name in ("a.nii.gz", "a.nrrd", "a.mha", "a.seg.nrrd"):
        medseg.write(label_map(), tmp_path / name)
        first = (tmp_path / name).read_bytes()
        medseg.write(label_map(), tmp_path / name)
        assert (tmp_path / name).read_bytes() == first


def test_large_files_are_one_gzip_member_that_any_reader_sees_whole(tmp_path):
    array = np.random.default_rng(0).integers(0, 50, (256, 256, 100)).astype(np.int16)  # several blocks
    path = tmp_path / "scan.nii.gz"
    medseg.write(Volume(array[None], Geometry(np.eye(4), array.shape)), path)
    content = path.read_bytes()
    inflate = zlib.decompressobj(wbits=31)
    assert len(inflate.decompress(content)) == 352 + array.nbytes
    assert inflate.eof
    assert not inflate.unused_data
    assert gzip.decompress(content)[352:] == array.tobytes(order="F")
    assert np.array_equal(medseg.read(path).array[0], array)


def test_a_grid_too_large_for_nifti_1_becomes_nifti_2(tmp_path):
    path = tmp_path / "scan.nii.gz"
    medseg.write(Volume(np.ones((1, 40000, 2, 2), np.uint8), Geometry(np.eye(4), (40000, 2, 2))), path)
    assert isinstance(nibabel.load(path), nibabel.Nifti2Image)
    assert medseg.read(path).geometry.shape == (40000, 2, 2)


@pytest.mark.parametrize(
    ("given_type", "stored"),
    [(bool, np.uint8), (np.float16, np.float32), (np.float64, np.float64), (np.int64, np.int64), (">i2", np.int16)],
)
def test_every_real_type_can_be_written(tmp_path, given_type, stored):
    array = np.arange(60).reshape(3, 4, 5).astype(given_type)
    path = tmp_path / "scan.nii.gz"
    medseg.write(Volume(array[None], oblique(shape=(3, 4, 5))), path)
    again = medseg.read(path)
    assert again.array.dtype == stored
    assert np.array_equal(again.array[0], array)


def test_several_channels_become_a_fourth_axis(tmp_path):
    array = np.random.default_rng(0).random((3, 5, 6, 7)).astype(np.float32)
    path = tmp_path / "probabilities.nii.gz"
    medseg.write(Volume(array, oblique()), path)
    assert np.array_equal(np.asarray(nibabel.load(path).dataobj), np.moveaxis(array, 0, -1))
    assert np.array_equal(medseg.io.read(path, volume=1).array[0], array[1])


def test_a_scan_that_is_a_view_is_written_in_its_own_order(tmp_path):
    scan = smooth_scan((8, 9, 10))
    view = Volume(scan.array[:, ::-1, ::2, 1:], scan.geometry.cropped((0, 0, 0), (8, 5, 9)))
    medseg.write(view, tmp_path / "scan.nii.gz")
    assert np.array_equal(medseg.read(tmp_path / "scan.nii.gz").array, view.array)


def test_the_24_stored_orders_of_one_real_brain_are_one_brain(data):
    files = sorted((data / "orientations").glob("*.nii.gz"))
    assert len(files) == 24
    canonical = []
    for path in files:
        scan = medseg.read(path)
        assert scan.geometry.orientation == path.name[:3]
        order = scan.geometry.order_to("RAS")
        canonical.append((order.apply(scan.array), scan.geometry.reordered(order)))
    for array, geometry in canonical[1:]:
        assert np.array_equal(array, canonical[0][0])
        assert geometry.same_as(canonical[0][1], tolerance=1e-3)

"""The file gate: every damaged, impossible or odd NIfTI file has its answer, and none of them hurts.

Numbers in parentheses count the rows of a catalogue of faults seen in real archives.
"""

import gzip
import os
import struct
import tracemalloc
import zlib

import nibabel
import numpy as np
import pytest
from conftest import smooth_scan

from medseg.errors import ScanError
from medseg.gate import Gate, readable
from medseg.io import read, write

SHAPE = (12, 10, 8)
AFFINE = np.array([[-1.5, 0, 0, 20], [0, 1.5, 0, -30], [0, 0, 2, 5], [0, 0, 0, 1.0]])


def voxels(dtype=np.int16):
    return np.random.default_rng(0).integers(0, 100, SHAPE).astype(dtype)


def raw(array=None, *, header=nibabel.Nifti1Image, affine=AFFINE, **fields) -> bytearray:
    """Return an uncompressed NIfTI file, with header fields overwritten by name."""
    array = voxels() if array is None else array
    image = header(array, affine, dtype=array.dtype)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    content = bytearray(image.to_bytes())
    where = image.header.template_dtype
    for name, value in fields.items():
        field, _, index = name.partition("__")
        dtype, offset = where.fields[field][:2]
        item = np.asarray(value, dtype.base).tobytes()
        start = offset + int(index or 0) * dtype.base.itemsize
        content[start : start + len(item)] = item
    return content


def saved(tmp_path, content, name="scan.nii"):
    path = tmp_path / name
    path.write_bytes(gzip.compress(bytes(content), mtime=0) if name.endswith(".gz") else bytes(content))
    return path


def refused(path, code, *words):
    """Check that a file is refused in one line that names it, with a code and the words."""
    with pytest.raises(ScanError) as caught:
        read(path)
    message = str(caught.value)
    assert caught.value.code == code, message
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert ";" in message  # what to do stands behind it
    for word in words:
        assert word in message
    return message


def warned(path, *words):
    """Check that a file is read with exactly one warning that has the words; return the scan."""
    scan = read(path)
    assert len(scan.source.warnings) == 1, scan.source.warnings
    for word in words:
        assert word in scan.source.warnings[0]
    return scan


def test_a_sound_file_passes_without_a_word(tmp_path):
    for name in ("scan.nii", "scan.nii.gz"):
        scan = read(saved(tmp_path, raw(), name))
        assert scan.source.warnings == ()
        assert (scan.array[0] == voxels()).all()
        assert np.array_equal(scan.geometry.affine, AFFINE)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9, 0.999])
def test_truncated_gzip_is_refused(tmp_path, share):  # (1)
    path = saved(tmp_path, raw(), "scan.nii.gz")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(path, "TRUNCATED")


@pytest.mark.parametrize("missing", range(1, 9))
def test_a_missing_gzip_trailer_is_refused(tmp_path, missing):  # (2)
    path = saved(tmp_path, raw(), "scan.nii.gz")
    path.write_bytes(path.read_bytes()[:-missing])
    refused(path, "TRUNCATED")


def test_every_flipped_bit_of_the_gzip_stream_is_found(tmp_path):  # (3)
    path = saved(tmp_path, raw(np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)), "scan.nii.gz")
    whole = path.read_bytes()
    good = read(path)
    for position in [*range(10, len(whole), 41), *range(len(whole) - 8, len(whole))]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        try:
            scan = read(path)
        except ScanError:
            continue
        assert np.array_equal(scan.array, good.array), position  # a bit that means nothing


@pytest.mark.parametrize("offset", [-8, -4])
def test_a_wrong_checksum_or_length_is_refused(tmp_path, offset):  # (4)
    path = saved(tmp_path, raw(), "scan.nii.gz")
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    refused(path, "CHECKSUM", "damaged")


@pytest.mark.parametrize("missing", [1, 100, 1500])
def test_a_short_file_is_refused(tmp_path, missing):  # (5)
    refused(saved(tmp_path, raw()[:-missing]), "TRUNCATED")


def test_a_bomb_behind_the_voxels_is_bounded(tmp_path, monkeypatch):  # (6)
    monkeypatch.setattr("medseg.io.stream.MAX_TRAILING", 1 << 20)
    path = saved(tmp_path, raw() + bytes(50 << 20), "scan.nii.gz")
    tracemalloc.start()
    refused(path, "TRAILING_DATA", "after its voxels")
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_some_bytes_behind_the_voxels_are_a_warning(tmp_path):
    for name in ("scan.nii", "scan.nii.gz"):
        warned(saved(tmp_path, raw() + b"123", name), "3 bytes follow")


@pytest.mark.parametrize("size", [2048, 32767])
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_impossible_sizes_are_refused_before_anything_is_allocated(tmp_path, size, name):  # (7)
    content = raw(np.zeros((1, 1, 1), np.int16), dim__1=size, dim__2=size, dim__3=size)
    path = saved(tmp_path, content + bytes(32000), name)
    tracemalloc.start()
    refused(path, "TRUNCATED", "declares", "TB" if size > 10000 else "GB")
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_sizes_beyond_the_memory_are_refused_before_anything_is_allocated(tmp_path, monkeypatch):  # (36)
    monkeypatch.setattr("medseg.gate.free_memory", lambda: 1000)
    refused(saved(tmp_path, raw()), "MEMORY", "1.9 kB", "1.0 kB are free")


def test_memory_that_runs_out_all_the_same_is_one_line(tmp_path, monkeypatch):
    def none_left(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr("medseg.io.nifti.read_voxels", none_left)
    refused(saved(tmp_path, raw()), "MEMORY")


@pytest.mark.parametrize("magic", [b"nope", b"\0\0\0\0"])
def test_a_wrong_magic_is_refused(tmp_path, magic):  # (8)
    content = raw()
    content[344:348] = magic
    refused(saved(tmp_path, content), "NOT_NIFTI")


def test_big_endian_is_read(tmp_path):  # (9)
    header = nibabel.Nifti1Header(endianness=">")
    image = nibabel.Nifti1Image(voxels(), AFFINE, header)
    image.set_sform(AFFINE, 1)
    scan = read(saved(tmp_path, image.to_bytes(), "scan.nii.gz"))
    assert (scan.array[0] == voxels()).all()
    assert scan.array.dtype.isnative
    assert np.array_equal(scan.geometry.affine, AFFINE)


def test_nifti_2_is_read(tmp_path):  # (10)
    scan = read(saved(tmp_path, raw(header=nibabel.Nifti2Image), "scan.nii.gz"))
    assert (scan.array[0] == voxels()).all()
    assert np.array_equal(scan.geometry.affine, AFFINE)


def test_a_left_right_conflict_of_qform_and_sform_is_a_warning(tmp_path):  # (11)
    image = nibabel.Nifti1Image(voxels(), AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(np.diag([-1, 1, 1, 1]) @ AFFINE, 1)
    scan = warned(saved(tmp_path, image.to_bytes()), "which side is left", "sform is used")
    assert np.array_equal(scan.geometry.affine, AFFINE)


def test_forms_that_lie_apart_are_a_warning(tmp_path):
    image = nibabel.Nifti1Image(voxels(), AFFINE)
    moved = AFFINE.copy()
    moved[0, 3] += 7
    image.set_sform(AFFINE, 1)
    image.set_qform(moved, 1)
    warned(saved(tmp_path, image.to_bytes()), "up to 7 apart")


def test_no_form_at_all_is_a_warning(tmp_path):  # (12)
    scan = warned(saved(tmp_path, raw(qform_code=0, sform_code=0)), "neither qform nor sform")
    assert np.array_equal(scan.geometry.affine, np.diag([1.5, 1.5, 2, 1]))


def test_spacing_zero_is_refused_on_an_axis_of_several_voxels(tmp_path):  # (13)
    refused(saved(tmp_path, raw(pixdim__3=0)), "SPACING", "along k is 0")


def test_spacing_zero_is_a_warning_on_an_axis_of_one_voxel(tmp_path):
    path = saved(tmp_path, raw(voxels()[..., :1], pixdim__3=0, sform_code=0, qform_code=0))
    scan = read(path)
    assert any("axis of one voxel" in warning for warning in scan.source.warnings)
    assert scan.geometry.spacing == (1.5, 1.5, 1.0)


def test_an_sform_without_direction_for_an_axis_of_one_voxel_is_a_warning(tmp_path):
    flat = AFFINE.copy()
    flat[:3, 2] = 0
    content = raw(voxels()[..., :1], qform_code=0)
    content[280:328] = flat[:3].astype("<f4").tobytes()
    scan = warned(saved(tmp_path, content), "no direction to axis k")
    assert np.allclose(np.abs(scan.geometry.affine), np.abs(AFFINE))


def test_negative_spacing_is_a_warning(tmp_path):  # (14)
    scan = warned(saved(tmp_path, raw(pixdim__2=-1.5)), "along j is -1.5", "absolute value")
    assert np.array_equal(scan.geometry.affine, AFFINE)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_spacing_that_is_not_finite_is_refused(tmp_path, value):  # (15)
    refused(saved(tmp_path, raw(pixdim__1=value)), "SPACING", "along i")


@pytest.mark.parametrize("fields", [{"srow_x__0": np.nan}, {"srow_y__3": np.inf}])
def test_an_sform_that_is_not_finite_is_refused(tmp_path, fields):  # (16)
    refused(saved(tmp_path, raw(**fields)), "AFFINE", "sform", "NaN")


def test_a_singular_sform_is_refused(tmp_path):  # (16)
    refused(saved(tmp_path, raw(srow_x=[0, 0, 0, 0], qform_code=0)), "AFFINE", "singular")


@pytest.mark.parametrize("fields", [{"quatern_b": np.nan}, {"qoffset_x": np.inf}])
def test_a_qform_that_is_not_finite_is_refused(tmp_path, fields):
    refused(saved(tmp_path, raw(sform_code=0, **fields)), "AFFINE", "qform")


def test_a_quaternion_longer_than_one_is_refused(tmp_path):
    refused(saved(tmp_path, raw(sform_code=0, quatern_b=1.0, quatern_c=1.0)), "AFFINE", "quaternion")


def test_shear_is_read_with_a_warning(tmp_path):  # (17)
    sheared = AFFINE.copy()
    sheared[0, 2] = 0.5
    content = raw(qform_code=0)
    content[280:328] = sheared[:3].astype("<f4").tobytes()
    scan = read(saved(tmp_path, content))
    assert any("right angles" in warning for warning in scan.source.warnings)
    assert np.allclose(scan.geometry.affine, sheared)


def test_metres_are_converted_with_a_warning(tmp_path):  # (18)
    small = np.diag([0.001, 0.001, 0.001, 1]) @ AFFINE
    scan = warned(saved(tmp_path, raw(affine=small, xyzt_units=1)), "metres")
    assert np.allclose(scan.geometry.affine, AFFINE, rtol=1e-6)


@pytest.mark.parametrize("unit", [0, 2, 8, 10])
def test_unknown_units_mean_millimetres(tmp_path, unit):
    assert np.array_equal(read(saved(tmp_path, raw(xyzt_units=unit))).geometry.affine, AFFINE)


@pytest.mark.parametrize(("factor", "said"), [(0.001, "0.0015 mm"), (1000, "1500 mm")])
def test_spacings_that_no_scan_has_are_refused(tmp_path, factor, said):  # (19, 20)
    scaled = AFFINE * [factor, factor, factor, 1]
    refused(saved(tmp_path, raw(affine=scaled)), "SPACING", said)


def test_some_nan_voxels_become_air_with_a_warning(tmp_path):  # (21)
    array = voxels(np.float32)
    array[0, :3, 0] = np.nan
    scan = warned(saved(tmp_path, raw(array), "scan.nii.gz"), "3 voxels are NaN", "air")
    assert (scan.array[0, 0, :3, 0] == np.nanmin(array)).all()
    assert np.array_equal(scan.array[0, 1:], array[1:])


def test_only_nan_voxels_are_refused(tmp_path):  # (22)
    refused(saved(tmp_path, raw(np.full(SHAPE, np.nan, np.float32))), "NOT_FINITE", "no voxel")


@pytest.mark.parametrize("value", [np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_infinite_voxels_are_clipped_with_a_warning(tmp_path, value, dtype):  # (23)
    array = voxels(dtype)
    array[5, 5, 5] = value
    scan = warned(saved(tmp_path, raw(array)), "1 voxels are infinite")
    rest = np.delete(array.ravel(), np.ravel_multi_index((5, 5, 5), SHAPE))
    assert scan.array[0, 5, 5, 5] == (rest.max() if value > 0 else rest.min())


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_slope_zero_or_nan_means_unscaled(tmp_path, slope):  # (24)
    scan = read(saved(tmp_path, raw(scl_slope=slope, scl_inter=5.0)))
    assert scan.array.dtype == np.int16
    assert (scan.array[0] == voxels()).all()


@pytest.mark.parametrize("fields", [{"scl_slope": np.inf}, {"scl_slope": 1.0, "scl_inter": np.nan}])
def test_scaling_that_is_not_finite_is_refused(tmp_path, fields):  # (25)
    refused(saved(tmp_path, raw(**fields)), "SCALING")


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex_numbers_are_refused(tmp_path, dtype):  # (26)
    refused(saved(tmp_path, raw(voxels().astype(dtype))), "DATATYPE", "complex")


def test_colours_are_refused(tmp_path):  # (27)
    rgb = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    refused(saved(tmp_path, raw(rgb)), "DATATYPE", "RGB")


def test_a_4d_file_of_one_volume_is_a_scan(tmp_path):  # (28)
    assert read(saved(tmp_path, raw(voxels()[..., None]))).array.shape == (1, *SHAPE)


def test_a_4d_file_of_several_volumes_asks_which(tmp_path):  # (29)
    array = np.stack([voxels(), voxels() + 7, voxels() + 9], axis=-1)
    for name in ("scan.nii", "scan.nii.gz"):
        path = saved(tmp_path, raw(array), name)
        refused(path, "SEVERAL_VOLUMES", "3 volumes", "--volume")
        for number in range(3):
            assert (read(path, volume=number).array[0] == array[..., number]).all()
        with pytest.raises(ScanError, match="no volume 3"):
            read(path, volume=3)


def test_the_checksum_is_verified_when_only_the_first_volume_is_read(tmp_path):
    path = saved(tmp_path, raw(np.stack([voxels()] * 3, axis=-1)), "scan.nii.gz")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ScanError, match="ends early"):
        read(path, volume=0)


def test_vectors_are_refused(tmp_path):  # (30)
    refused(saved(tmp_path, raw(np.zeros((4, 4, 4, 1, 3), np.float32))), "SHAPE", "vectors")


@pytest.mark.parametrize("shape", [(12, 10), (12, 10, 1), (1, 1, 1), (7, 1, 5)])
def test_flat_scans_are_read(tmp_path, shape):  # (31)
    array = np.ones(shape, np.int16)
    assert read(saved(tmp_path, raw(array))).geometry.shape == (*shape, 1)[:3]


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int8, np.uint16, np.uint32, np.int32, np.int64, np.uint64, np.float32, np.float64]
)
def test_every_real_type_is_read_as_it_is(tmp_path, dtype):  # (32)
    scan = read(saved(tmp_path, raw(voxels(dtype))))
    assert scan.array.dtype == dtype
    assert (scan.array[0] == voxels(dtype)).all()


def test_unsigned_voxels_with_an_intercept_stay_integers(tmp_path):  # (32)
    array = (voxels() + 1024).astype(np.uint16)
    scan = read(saved(tmp_path, raw(array, scl_slope=1.0, scl_inter=-1024.0)))
    assert scan.array.dtype == np.int16
    assert (scan.array[0] == voxels()).all()


def test_fractional_scaling_gives_float32(tmp_path):
    scan = read(saved(tmp_path, raw(scl_slope=0.25, scl_inter=-3.5)))
    assert scan.array.dtype == np.float32
    assert np.allclose(scan.array[0], voxels() * 0.25 - 3.5)


@pytest.mark.parametrize("offset", [0, 100, np.nan, 352.5])
def test_voxels_that_begin_within_the_header_are_refused(tmp_path, offset):  # (39)
    refused(saved(tmp_path, raw(vox_offset=offset)), "OFFSET")


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_voxels_that_begin_behind_the_end_are_refused(tmp_path, name):  # (39, 40)
    tracemalloc.start()
    refused(saved(tmp_path, raw(vox_offset=2.0e9), name), "TRUNCATED")
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_a_header_extension_is_passed_over(tmp_path):  # (40)
    image = nibabel.Nifti1Image(voxels(), AFFINE)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b"x" * 5000))
    assert (read(saved(tmp_path, image.to_bytes(), "scan.nii.gz")).array[0] == voxels()).all()


def test_gzip_of_several_members_is_read(tmp_path):  # (41)
    content = bytes(raw())
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(content[:1000]) + gzip.compress(content[1000:]))
    assert (read(path).array[0] == voxels()).all()


@pytest.mark.parametrize(
    ("content", "code", "word"),
    [
        (b"", "EMPTY", "empty"),
        (b"<!DOCTYPE html><html>404</html>", "NOT_A_SCAN", "web page"),
        (b"patient,volume\n1,2\n", "NOT_A_SCAN", "text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "NOT_A_SCAN", "git lfs pull"),
        (b"PK\x03\x04" + bytes(100), "NOT_A_SCAN", "zip"),
        (b"\x80\x04\x95" + bytes(100), "NOT_A_SCAN", "pickle"),
        (bytes(128) + b"DICM" + bytes(100), "NO_IMAGES", "DICOM"),
        (b"\x01\x02\x03" + bytes(2000), "NOT_NIFTI", "no NIfTI file"),
        (b"\x5c\x01", "TRUNCATED", "header"),
        (b"\x1f\x8b\x08\0" + bytes(6) + b"garbage", "CHECKSUM", "damaged"),
    ],
)
def test_files_that_are_no_scan_are_named_for_what_they_are(tmp_path, content, code, word):  # (42)
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(content)
    refused(path, code, word)


def test_the_content_decides_when_the_suffix_is_wrong(tmp_path):
    for name in ("scan.nrrd", "scan.png", "scan.dat", "scan"):
        path = tmp_path / name
        path.write_bytes(raw())
        assert (read(path).array[0] == voxels()).all()


@pytest.mark.parametrize(
    "name", ["señal ß 影像.nii", "a b  c.nii", "-dash.nii", "1.2.840.113619.2.55.nii", "x.nii.nii"]
)
def test_names_of_any_form_are_read(tmp_path, name):  # (43)
    assert read(saved(tmp_path, raw(), name)).array.shape == (1, *SHAPE)


@pytest.mark.parametrize("name", ["scan.hdr", "scan.img", "scan.mhd", "scan.nhdr"])
def test_detached_headers_are_refused(tmp_path, name):  # (89)
    path = tmp_path / name
    path.write_bytes(raw())
    refused(path, "DETACHED")


def test_a_header_that_says_its_voxels_are_elsewhere_is_refused(tmp_path):
    content = raw()
    content[344:348] = b"ni1\0"
    refused(saved(tmp_path, content), "DETACHED")


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path):
    refused(tmp_path / "none.nii", "MISSING")
    refused(tmp_path, "NOT_A_FILE", "folder")
    os.mkfifo(tmp_path / "pipe.nii")
    refused(tmp_path / "pipe.nii", "NOT_A_FILE", "pipe")


def test_a_file_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    path = saved(tmp_path, raw())

    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    refused(path, "UNREADABLE", "Permission denied")


@pytest.mark.parametrize("fields", [{"dim__0": 9}, {"dim__0": 0}, {"dim__2": 0}, {"dim__2": -5}])
def test_impossible_dimensions_are_refused(tmp_path, fields):
    refused(saved(tmp_path, raw(**fields)), "SHAPE")


@pytest.mark.parametrize("fields", [{"datatype": 3}, {"bitpix": 8}, {"datatype": 1536, "bitpix": 128}])
def test_unknown_types_are_refused(tmp_path, fields):
    refused(saved(tmp_path, raw(**fields)), "DATATYPE")


def mutated(content, rng, within):
    """Return a file with up to four bytes flipped, replaced, inserted or deleted, most of them in its header."""
    damaged = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        position = int(rng.integers(0, within if rng.random() < 0.8 else len(damaged)))
        match rng.integers(0, 4):
            case 0:
                damaged[position] ^= 1 << int(rng.integers(0, 8))
            case 1:
                damaged[position] = int(rng.integers(0, 256))
            case 2:
                damaged[position:position] = rng.bytes(int(rng.integers(1, 8)))
            case _:
                del damaged[position : position + int(rng.integers(1, 4))]
    return damaged


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_random_damage_is_answered_or_harmless(tmp_path, suffix):
    rng = np.random.default_rng(1)
    path = tmp_path / f"scan{suffix}"
    write(smooth_scan((12, 10, 8)), tmp_path / f"sound{suffix.removesuffix('.gz')}")
    content = (tmp_path / f"sound{suffix.removesuffix('.gz')}").read_bytes()
    answered = 0
    for _ in range(1500):
        damaged = bytes(mutated(content, rng, 352))
        path.write_bytes(gzip.compress(damaged, 1) if suffix == ".nii.gz" else damaged)
        try:
            scan = read(path)
        except ScanError as error:
            assert str(error).startswith(f"{path}: ")
            assert "\n" not in str(error)
            answered += 1
        else:
            assert np.isfinite(scan.array).all()
            assert np.isfinite(scan.geometry.affine).all()
    assert 500 < answered < 1500


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path):
    content = gzip.compress(bytes(raw()), mtime=0)
    for cut in range(0, len(content), 97):
        path = tmp_path / "scan.nii.gz"
        path.write_bytes(content[:cut])
        with pytest.raises(ScanError):
            read(path)


def test_numbers_of_bytes_are_said_as_people_say_them():
    assert [readable(n) for n in (7, 31_500_000, 17.2e9, 5e15)] == ["7 bytes", "31.5 MB", "17.2 GB", "5000.0 TB"]


def test_the_same_warning_is_said_once(tmp_path):
    gate = Gate(tmp_path)
    gate.warn("odd")
    gate.warn("odd")
    assert gate.warnings == ["odd"]


def test_the_checksum_rule_of_the_tests_is_that_of_gzip(tmp_path):
    whole = saved(tmp_path, raw(), "scan.nii.gz").read_bytes()
    checksum, length = struct.unpack("<II", whole[-8:])
    assert (checksum, length) == (zlib.crc32(bytes(raw())), len(raw()))

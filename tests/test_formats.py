"""NRRD, MetaImage, segmentations of 3D Slicer, and pictures: against SimpleITK and Pillow, whole and damaged."""

import re
import warnings

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import SAMPLES, rotation, smooth_scan
from PIL import Image

import medseg
from medseg.atomic import Outputs
from medseg.errors import OutputError, ScanError
from medseg.geometry import Geometry
from medseg.io.nrrd import load, write_nrrd
from medseg.plan import Code, Label
from medseg.volume import LabelMap, Volume


def oblique(seed, shape=(5, 6, 7)):
    affine = np.eye(4)
    affine[:3, :3] = rotation(seed) * (0.7, 1.2, 3.0)
    affine[:3, 3] = (12.5, -80, 33)
    return Geometry(affine, shape)


def refused(path, code):
    with pytest.raises(ScanError) as caught:
        medseg.read(path)
    assert caught.value.code == code, str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64, np.uint32])
def test_simpleitk_and_medseg_read_each_other(tmp_path, suffix, seed, dtype):
    array = np.random.default_rng(seed).integers(0, 100, (5, 6, 7)).astype(dtype)
    scan = Volume(array[None], oblique(seed))
    medseg.write(scan, tmp_path / f"ours{suffix}")
    image = sitk.ReadImage(tmp_path / f"ours{suffix}")
    assert np.array_equal(sitk.GetArrayFromImage(image).T, array)
    corner = [4.0, 5.0, 6.0]
    lps = image.TransformContinuousIndexToPhysicalPoint(corner)
    assert np.allclose(lps * np.array([-1, -1, 1]), scan.geometry.to_world(corner), atol=1e-6)
    for compressed in (False, True):
        sitk.WriteImage(image, tmp_path / f"theirs{suffix}", useCompression=compressed)
        theirs = medseg.read(tmp_path / f"theirs{suffix}")
        assert np.array_equal(theirs.array[0], array)
        assert theirs.geometry.same_as(scan.geometry, tolerance=1e-6)
        assert theirs.source.warnings == ()


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_every_damage_to_the_voxels_is_found(tmp_path, suffix):
    path = tmp_path / f"scan{suffix}"
    medseg.write(smooth_scan((20, 20, 20)), path)
    whole = path.read_bytes()
    good = medseg.read(path)
    start = whole.index(b"\n\n" if suffix == ".nrrd" else b"LOCAL\n") + 12
    for cut in (start + 5, len(whole) // 2, len(whole) - 5, len(whole) - 1):
        path.write_bytes(whole[:cut])
        refused(path, "TRUNCATED")
    for position in range(start + 20, len(whole), max(1, len(whole) // 50)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        try:
            scan = medseg.read(path)
        except ScanError:
            continue
        assert np.array_equal(scan.array, good.array), position


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_headers_cut_off_or_out_of_their_mind_are_refused(tmp_path, suffix):
    path = tmp_path / f"scan{suffix}"
    medseg.write(smooth_scan((4, 4, 4)), path)
    whole = path.read_bytes()
    end = whole.index(b"\n\n" if suffix == ".nrrd" else b"LOCAL\n")
    for cut in range(5, end, 7):
        path.write_bytes(whole[:cut])
        with pytest.raises(ScanError):
            medseg.read(path)
    sizes = b"sizes: 4 4 4" if suffix == ".nrrd" else b"DimSize = 4 4 4"
    for wrong in (b"32767 32767 32767", b"4 4", b"4 0 4", b"4 -4 4", b"x y z", b"99999999999999999999 1 1", b""):
        path.write_bytes(whole.replace(sizes, sizes[:-5] + wrong))
        with pytest.raises(ScanError):
            medseg.read(path)


@pytest.mark.parametrize(
    ("suffix", "old", "new", "code"),
    [
        (".nrrd", "encoding: gzip", "encoding: ascii", "ENCODING"),
        (".nrrd", "encoding: gzip", "byte skip: -1\nencoding: gzip", "ENCODING"),
        (".nrrd", "encoding: gzip", "data file: /etc/passwd\nencoding: gzip", "DETACHED"),
        (".nrrd", "encoding: gzip", "datafile: LIST\nencoding: gzip", "DETACHED"),
        (".nrrd", "type: float", "type: block", "DATATYPE"),
        (".nrrd", "kinds: domain domain domain", "kinds: domain domain", "HEADER"),
        (".nrrd", "endian: little\n", "", "HEADER"),
        (".nrrd", "(1,0,0)", "(nan,0,0)", "AFFINE"),
        (".nrrd", "(1,0,0)", "(0,0,0)", "AFFINE"),
        (".nrrd", "(1,0,0)", "(x,0,0)", "AFFINE"),
        (".nrrd", "(1,0,0)", "(0.0001,0,0)", "SPACING"),
        (".nrrd", "endian: little", 'endian: little\nspace units: "furlong" "mm" "mm"', "SPACING"),
        (".nrrd", "endian: little", "endian: little\nnonsense", "HEADER"),
        (".nrrd", "(1,0,0)", "(1,0,0,0)", "AFFINE"),
        (".nrrd", "(1,0,0)", "(1,0)", "AFFINE"),
        (".nrrd", "space origin: (0,0,0)", "space origin: (0,0,0,0,0)", "AFFINE"),
        (".nrrd", "dimension: 3", "dimension: 4", "SHAPE"),
        (".mha", "ElementDataFile = LOCAL", "ElementDataFile = /etc/passwd", "DETACHED"),
        (".mha", "ElementDataFile = LOCAL", "ElementDataFile = LIST", "DETACHED"),
        (".mha", "BinaryData = True", "BinaryData = False", "ENCODING"),
        (".mha", "ElementType = MET_FLOAT", "ElementType = MET_FLOAT_ARRAY", "DATATYPE"),
        (".mha", "ElementType = MET_FLOAT", "ElementNumberOfChannels = 3\nElementType = MET_FLOAT", "DATATYPE"),
        (".mha", "ElementSpacing = 1 1 1", "ElementSpacing = 0 1 1", "SPACING"),
        (".mha", "ElementSpacing = 1 1 1", "ElementSpacing = nan 1 1", "AFFINE"),
        (".mha", "ElementSpacing = 1 1 1", "ElementSpacing = 1000 1 1", "SPACING"),
        (".mha", "ElementSpacing = 1 1 1", "ElementSpacing = 1 1", "AFFINE"),
        (".mha", "NDims = 3", "NDims = 2", "SHAPE"),
    ],
)
def test_headers_that_cannot_be_trusted_are_refused(tmp_path, suffix, old, new, code):
    path = tmp_path / f"scan{suffix}"
    in_lps = Geometry(np.diag([-1.0, -1.0, 1.0, 1.0]), (4, 4, 4))
    medseg.write(Volume(smooth_scan((4, 4, 4)).array, in_lps), path)
    content = path.read_bytes()
    assert old.encode() in content
    path.write_bytes(content.replace(old.encode(), new.encode()))
    refused(path, code)


HOSTILE = ["", "x", "nan", "-inf", "1e999", "-1", "0", "1,2", "(", ")", "none", "é", "1 2", "9" * 5000, "(1,0,0,0,0)"]


@pytest.mark.parametrize("suffix", [".nrrd", ".seg.nrrd", ".mha"])
def test_no_word_of_a_header_can_be_more_than_refused(tmp_path, suffix):
    sound, path = tmp_path / f"sound{suffix}", tmp_path / f"scan{suffix}"
    medseg.write(tiny_labels(), sound)
    header, body = re.split(rb"(?<=ElementDataFile = LOCAL)\n|\n\n", sound.read_bytes(), maxsplit=1)
    words = re.findall(rb"[^ \n(),~^|]+", header)
    assert len(words) > 20
    for found in re.finditer(rb"[^ \n(),~^|]+", header):
        for word in HOSTILE:
            changed = header[: found.start()] + word.encode() + header[found.end() :]
            path.write_bytes(changed + (b"\n" if suffix == ".mha" else b"\n\n") + body)
            for read in (medseg.read, medseg.read_labels):
                try:
                    image = read(path)
                except ScanError as error:
                    assert "\n" not in str(error)
                else:
                    assert np.isfinite(image.geometry.affine).all()


def test_headers_that_leave_the_place_open_are_read_with_a_warning(tmp_path):
    body = np.arange(24, dtype="<i2").tobytes()
    (tmp_path / "a.nrrd").write_bytes(
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 2 3 4\nspacings: 1 2 3\nendian: little\nencoding: raw\n\n" + body
    )
    scan = medseg.read(tmp_path / "a.nrrd")
    assert scan.geometry.spacing == (1, 2, 3)
    assert "does not say how the scan lies" in scan.source.warnings[0]
    (tmp_path / "a.mha").write_bytes(
        b"ObjectType = Image\nNDims = 3\nDimSize = 2 3 4\nElementType = MET_SHORT\nElementDataFile = LOCAL\n" + body
    )
    assert len(medseg.read(tmp_path / "a.mha").source.warnings) == 3


@pytest.mark.parametrize("space", ["right-anterior-superior", "RAS", "left-anterior-superior", "LPS"])
def test_every_patient_space_of_nrrd_reaches_ras(tmp_path, space):
    signs = {"r": 1, "l": -1, "a": 1, "p": -1, "s": 1}
    words = space.split("-") if "-" in space else list(space)
    header = f"NRRD0004\ntype: uint8\ndimension: 3\nspace: {space}\nsizes: 2 2 2\n"
    header += "space directions: (1,0,0) (0,2,0) (0,0,3)\nspace origin: (5,6,7)\nencoding: raw\n\n"
    (tmp_path / "a.nrrd").write_bytes(header.encode() + bytes(8))
    wanted = [signs[word[0].lower()] for word in words]
    geometry = medseg.read(tmp_path / "a.nrrd").geometry
    assert np.allclose(np.diag(geometry.affine)[:3], np.array(wanted) * (1, 2, 3))
    assert np.allclose(geometry.origin, np.array(wanted) * (5, 6, 7))


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_several_volumes_ask_which(tmp_path, suffix):
    array = np.random.default_rng(0).random((3, 4, 5, 6)).astype(np.float32)
    path = tmp_path / f"scan{suffix}"
    medseg.write(Volume(array, oblique(0, (4, 5, 6))), path)
    refused(path, "SEVERAL_VOLUMES")
    scan = medseg.read(path, volume=2)
    assert np.array_equal(scan.array[0], array[2])
    assert scan.geometry.same_as(oblique(0, (4, 5, 6)), tolerance=1e-6)


def test_big_endian_voxels_are_read(tmp_path):
    array = np.arange(24, dtype=">i2")
    header = b"NRRD0004\ntype: short\ndimension: 3\nspace: LPS\nsizes: 2 3 4\nendian: big\nencoding: raw\n"
    header += b"space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n\n"
    (tmp_path / "a.nrrd").write_bytes(header + array.tobytes())
    assert np.array_equal(medseg.read(tmp_path / "a.nrrd").array[0], array.reshape((2, 3, 4), order="F"))


def tiny_labels(overlap=False):
    array = np.zeros((6, 5, 4), np.uint8)
    array[1:3, 1:3, 1] = 1
    array[3:5, 2:4, 2] = 2
    array[0, 0, 0] = 3
    code = Code(value="5366008", meaning="Hippocampus")
    modifier = Code(value="255549009", meaning="Anterior")
    front = Label(value=1, name="front part", atoms=(1, 3) if overlap else (1,), code=code, modifier=modifier)
    back = Label(value=2, name="back", atoms=(2, 3) if overlap else (2,), color=(10, 200, 30))
    rest = () if overlap else (Label(value=3, name="third"),)
    return LabelMap(array, oblique(3, (6, 5, 4)), (front, back, *rest))


@pytest.mark.parametrize("overlap", [False, True])
def test_segments_keep_names_colours_codes_and_voxels(tmp_path, overlap):
    labels = tiny_labels(overlap)
    medseg.write(labels, tmp_path / "a.seg.nrrd")
    again = medseg.read_labels(tmp_path / "a.seg.nrrd")
    assert again.geometry.same_as(labels.geometry, tolerance=1e-6)
    assert [label.name for label in again.labels] == [label.name for label in labels.labels]
    for one, two in zip(labels.labels, again.labels, strict=True):
        assert np.array_equal(labels.mask(one.name), again.mask(two.name))
        assert (one.rgb, one.code, one.modifier, one.value) == (two.rgb, two.code, two.modifier, two.value)
    assert again.counts() == labels.counts()


def written_keys(tmp_path, labels):
    medseg.write(labels, tmp_path / "keys.seg.nrrd")
    return load(tmp_path / "keys.seg.nrrd").keys


def test_simpleitk_reads_our_segments_with_their_keys(tmp_path):
    labels = tiny_labels()
    medseg.write(labels, tmp_path / "a.seg.nrrd")
    image = sitk.ReadImage(tmp_path / "a.seg.nrrd")
    assert np.array_equal(sitk.GetArrayFromImage(image).T, labels.array)
    assert image.GetMetaData("Segment0_Name") == "front part"
    assert image.GetMetaData("Segment1_LabelValue") == "2"
    assert "SCT^5366008^Hippocampus~SCT^255549009^Anterior" in image.GetMetaData("Segment0_Tags")


@pytest.mark.parametrize(("overlap", "extents"), [(False, ["0 4 0 3 0 2"] * 3), (True, ["0 2 0 2 0 1", "0 4 0 3 0 2"])])
def test_each_segment_has_the_extent_of_its_layer_to_which_3d_slicer_may_cut_the_layer(tmp_path, overlap, extents):
    keys = written_keys(tmp_path, tiny_labels(overlap))
    assert [keys[f"Segment{number}_Extent"] for number in range(len(extents))] == extents


def test_a_layer_whose_first_segment_is_empty_keeps_the_others(tmp_path):
    labels = tiny_labels()
    empty = Label(value=9, name="missed")
    keys = written_keys(tmp_path, LabelMap(labels.array, labels.geometry, (empty, *labels.labels)))
    assert keys["Segment0_Extent"] == keys["Segment3_Extent"] == "0 4 0 3 0 2"
    none = written_keys(tmp_path, LabelMap(labels.array, labels.geometry, (empty,)))
    assert none["Segment0_Extent"] == "0 -1 0 -1 0 -1"


def test_segments_name_the_whole_grid_as_their_reference(tmp_path):
    labels = tiny_labels()
    name, value, said = written_keys(tmp_path, labels)["Segmentation_ConversionParameters"].split("|")
    *matrix, rest = value.split(";", 16)
    assert (name, said[-1], rest) == ("Reference image geometry", "&", "0;5;0;4;0;3;")
    assert np.array_equal(np.array(matrix, float).reshape(4, 4), labels.geometry.affine)


def test_a_label_without_a_code_has_no_entry_and_one_with_odd_words_still_seven_fields(tmp_path):
    plain = Label(value=1, name="plain")
    left = Label(value=2, name="left", modifier=Code(value="7771000", meaning="Left"))
    odd = Label(value=3, name="odd|name~^", code=Code(value="1|2", meaning="a~b^c|d"))
    keys = written_keys(tmp_path, LabelMap(np.ones((2, 2, 2), np.uint8), oblique(1, (2, 2, 2)), (plain, left, odd)))
    assert "Segment0_Tags" not in keys
    assert keys["Segment1_Tags"].split("~")[1:4] == ["SCT^85756007^Tissue", "SCT^85756007^Tissue", "SCT^7771000^Left"]
    assert keys["Segment2_Tags"].split("~")[2] == "SCT^1 2^a b c d"
    assert keys["Segment2_Tags"].count("~") == 6
    assert keys["Segment2_Name"] == "odd|name~^"


def test_a_segmentation_of_3d_slicer_is_read():
    labels = medseg.read_labels(SAMPLES / "ct_chest.seg.nrrd")
    scan = medseg.read(SAMPLES / "ct_chest.nrrd")
    assert labels.geometry.same_as(scan.geometry)
    names = {label.name: label.code.value for label in labels.labels}
    assert names["right lung"] == "39607008"
    assert labels.counts()["right lung"] == 34450
    air = scan.array[0][labels.mask("right lung")]
    assert -950 < np.median(air) < -600  # HU of lung


def test_the_right_lung_lies_on_the_right():
    labels = medseg.read_labels(SAMPLES / "ct_chest.seg.nrrd")
    centres = {
        side: labels.geometry.to_world(np.argwhere(labels.mask(f"{side} lung")).mean(axis=0))
        for side in ("left", "right")
    }
    assert centres["right"][0] > centres["left"][0] + 100  # mm, x grows to the right


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("Segment0_LabelValue:=1", "Segment0_LabelValue:=x", "segment 0"),
        ("Segment0_LabelValue:=1", "Segment0_LabelValue:=" + "1" * 5000, "segment 0"),
        ("Segment0_Layer:=0", "Segment0_Layer:=7", "a layer that it does not hold"),
        ("Segment1_Name:=back", "Segment1_Name:=front part", "two segments"),
    ],
)
def test_segments_that_cannot_be_told_apart_are_refused(tmp_path, old, new, said):
    path = tmp_path / "a.seg.nrrd"
    medseg.write(tiny_labels(), path)
    assert old.encode() in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode()))
    with pytest.raises(ScanError, match=said):
        medseg.read_labels(path)


def layered(path, layers):
    """Write layers of voxels, the segment of each being its value 1."""
    keys = {}
    for layer in range(len(layers)):
        keys |= {
            f"Segment{layer}_LabelValue": "1",
            f"Segment{layer}_Layer": str(layer),
            f"Segment{layer}_Name": "abc"[layer],
        }
    with Outputs() as outputs:
        write_nrrd(Volume(layers, Geometry(np.eye(4), layers.shape[1:])), path, outputs, keys=keys)


def test_layers_without_any_background_keep_their_segments(tmp_path):
    layers = np.random.default_rng(0).integers(0, 3, (3, 4, 5, 6)).astype(np.uint8)
    layers[0] += 1
    layered(tmp_path / "a.seg.nrrd", layers)
    labels = medseg.read_labels(tmp_path / "a.seg.nrrd")
    for layer, name in enumerate("abc"):
        assert np.array_equal(labels.mask(name), layers[layer] == 1)
    assert labels.array.min() > 0


def test_more_combinations_than_label_values_are_refused(tmp_path):
    layered(tmp_path / "a.seg.nrrd", np.indices((300, 300, 1)).astype(np.uint16)[:2])
    with pytest.raises(ScanError, match="combinations"):
        medseg.read_labels(tmp_path / "a.seg.nrrd")


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("RGB", 3), ("I;16", 1), ("F", 1), ("1", 1), ("RGBA", 3), ("LA", 1), ("P", 3)]
)
@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_pictures_of_every_mode_become_channels(tmp_path, mode, channels, suffix):
    if mode == "F" and suffix == ".png":
        pytest.skip("PNG holds no floats")
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3)).astype(np.uint8)
    colours = Image.fromarray(pixels)
    if mode in ("I;16", "F"):
        picture = Image.fromarray(pixels[..., 0].astype(np.uint16 if mode == "I;16" else np.float32))
    else:
        picture = colours.quantize(8) if mode == "P" else colours.convert(mode)
    picture.save(tmp_path / f"a{suffix}")
    scan = medseg.read(tmp_path / f"a{suffix}")
    assert scan.array.shape == (channels, 9, 7, 1)
    assert not scan.geometry.physical
    wanted = np.asarray(picture.convert("RGB") if mode == "P" else picture.convert("L") if mode == "1" else picture)
    wanted = wanted.reshape(7, 9, -1)[..., :channels]
    assert np.array_equal(scan.array[..., 0], np.moveaxis(wanted, (0, 1, 2), (2, 1, 0)))


def test_transparency_that_is_used_is_a_warning(tmp_path):
    Image.new("RGBA", (4, 4), (1, 2, 3, 100)).save(tmp_path / "a.png")
    assert "transparent" in medseg.read(tmp_path / "a.png").source.warnings[0]


def test_jpeg_and_lzw_tiff_and_gif_are_read(tmp_path):
    pixels = np.full((6, 8), 120, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    Image.fromarray(pixels).save(tmp_path / "b.tif", compression="tiff_lzw")
    Image.fromarray(pixels).save(tmp_path / "c.gif")
    for name in ("a.jpg", "b.tif", "c.gif"):
        scan = medseg.read(tmp_path / name)
        assert scan.array.shape == (1, 8, 6, 1)
        assert (scan.array == 120).all()


def test_a_picture_of_several_pages_asks_which(tmp_path):
    pages = [Image.fromarray(np.full((4, 5), value, np.uint8)) for value in (10, 20, 30)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    refused(tmp_path / "a.tif", "SEVERAL_VOLUMES")
    assert (medseg.read(tmp_path / "a.tif", volume=2).array == 30).all()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".gif"])
def test_damaged_pictures_are_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what it then refuses
        refused(path, "DAMAGED")


def test_a_picture_of_absurd_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (15, 15)).save(tmp_path / "a.png")
    refused(tmp_path / "a.png", "MEMORY")
    Image.new("L", (50, 50)).save(tmp_path / "a.png")
    refused(tmp_path / "a.png", "MEMORY")


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_labels_of_one_slice_are_written_as_pictures(tmp_path, suffix, dtype):
    array = np.array([[[0], [1]], [[2], [300 if dtype == np.uint16 else 3]]], dtype)
    labels = LabelMap(array, Geometry(np.eye(4), (2, 2, 1), physical=False))
    medseg.write(labels, tmp_path / f"a{suffix}")
    assert np.array_equal(medseg.read_labels(tmp_path / f"a{suffix}").array, array)


def test_the_indices_of_a_palette_are_labels(tmp_path):
    picture = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    picture.save(tmp_path / "a.png")
    assert np.array_equal(medseg.read_labels(tmp_path / "a.png").array[..., 0], [[0, 2], [1, 1]])
    assert medseg.read(tmp_path / "a.png").array.shape[0] == 3


@pytest.mark.parametrize(
    ("name", "image", "word"),
    [
        ("a.jpg", Volume(np.zeros((1, 2, 2, 1), np.uint8), Geometry(np.eye(4), (2, 2, 1))), "JPEG"),
        ("a.png", Volume(np.zeros((1, 2, 2, 2), np.uint8), Geometry(np.eye(4), (2, 2, 2))), "one slice"),
        ("a.png", Volume(np.zeros((1, 2, 2, 1), np.float32), Geometry(np.eye(4), (2, 2, 1))), "cannot hold"),
        ("a.gif", Volume(np.zeros((1, 2, 2, 1), np.uint16), Geometry(np.eye(4), (2, 2, 1))), "cannot hold"),
        ("a.seg.nrrd", Volume(np.zeros((1, 2, 2, 2), np.uint8), Geometry(np.eye(4), (2, 2, 2))), "a scan"),
        ("a.txt", Volume(np.zeros((1, 2, 2, 2), np.uint8), Geometry(np.eye(4), (2, 2, 2))), "suffix"),
        ("a.mhd", Volume(np.zeros((1, 2, 2, 2), np.uint8), Geometry(np.eye(4), (2, 2, 2))), "suffix"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(tmp_path, name, image, word):
    with pytest.raises(OutputError, match=word):
        medseg.write(image, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [0.5, -1.0, 70000.0])
def test_voxels_that_are_no_labels_are_refused(tmp_path, value):
    array = np.zeros((1, 3, 3, 3), np.float32)
    array[0, 1, 1, 1] = value
    medseg.write(Volume(array, Geometry(np.eye(4), (3, 3, 3))), tmp_path / "a.nii.gz")
    with pytest.raises(ScanError, match="not all whole labels"):
        medseg.read_labels(tmp_path / "a.nii.gz")


def test_labels_stored_as_floats_are_read_as_integers(tmp_path):
    array = np.zeros((1, 3, 3, 3), np.float64)
    array[0, 1, 1, 1] = 7
    medseg.write(Volume(array, Geometry(np.eye(4), (3, 3, 3))), tmp_path / "a.mha")
    labels = medseg.read_labels(tmp_path / "a.mha")
    assert labels.array.dtype == np.uint8
    assert labels.array[1, 1, 1] == 7

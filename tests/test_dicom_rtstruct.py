"""RT Structure Sets: what is written is read back to the voxel, by medseg and by others; hostile files are refused."""

import io
import os
import shutil
import subprocess
import warnings
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ORDERS, rotation
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from phantoms import body, organ, series, stack_of, store
from pydicom import DataElement, Dataset, dcmread
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import RawDataElement
from scipy import ndimage

from medseg.dicom.contours import enclosed, outlines
from medseg.dicom.frames import Producer, grid_of, plane_affine
from medseg.dicom.rtstruct_reader import read_structures, source_instances
from medseg.dicom.rtstruct_writer import encode_structures
from medseg.errors import ScanError, UsageError
from medseg.geometry import Geometry
from medseg.plan import Code, Label
from medseg.volume import Frame, LabelMap, Source, Stack, overlaid

PRODUCER = Producer("tiny", "1", "00")
OBLIQUE = tuple(rotation(3)[:, :2].T.ravel())
KINDS = {
    "axial": {},
    "sagittal": {"orientation": (0, 1, 0, 0, 0, -1)},
    "coronal": {"orientation": (1, 0, 0, 0, 0, -1)},
    "rows upside down": {"orientation": (1, 0, 0, 0, -1, 0)},
    "oblique": {"orientation": OBLIQUE, "origin": (-312.34567, 211.1, -987.654321)},
    "tilted": {"slant": (0.0, 0.9, 0.0)},
    "oblique and tilted": {"orientation": OBLIQUE, "slant": (0.3, 0.2, 0.1)},
    "anisotropic": {"spacing": (0.31, 1.7), "step": 0.4},
    "one slice": {"array": body()[..., 6:7]},
}
ORGAN = Label(value=3, name="organ")


@pytest.fixture(scope="module")
def axial(tmp_path_factory) -> Stack:
    return stack_of(store(series(), tmp_path_factory.mktemp("axial") / "ct"))


def on(stack, masks, labels=None) -> LabelMap:
    """Return masks of (columns, rows, frames) as labels of a series."""
    labels = labels or [Label(value=value, name=f"label {value}") for value in range(1, len(masks) + 1)]
    source = Source(Path("scan"), "dicom", stack=stack)
    return overlaid(zip(labels, masks, strict=True), grid_of(stack), source)


def parsed(labels: LabelMap, **options) -> Dataset:
    return dcmread(io.BytesIO(encode_structures(labels, PRODUCER, **options)))


def read(dataset, stack=None, **options) -> LabelMap:
    return read_structures(Path("structures.dcm"), dataset, stack, **options)


def refused(dataset, stack=None, **options) -> ScanError:
    with pytest.raises(ScanError) as caught:
        read(dataset, stack, **options)
    assert str(caught.value).startswith("structures.dcm: ")
    return caught.value


def structure_set(stack, *structures, kind="CLOSED_PLANAR") -> Dataset:
    """Return a structure set with contours given in pixels: for each structure, pairs of points and plane."""
    dataset = parsed(on(stack, [np.zeros((*stack.size, len(stack.frames)), bool) for _ in structures]))
    for drawing, contours in zip(dataset.ROIContourSequence, structures, strict=True):
        drawing.ContourSequence = []
        for points, plane in contours:
            item = Dataset()
            item.ContourGeometricType = kind
            item.NumberOfContourPoints = len(points)
            index = np.column_stack([points, np.full(len(points), plane), np.ones(len(points))])
            mm = (index @ grid_of(stack).affine.T)[:, :3] * (-1, -1, 1)
            item.ContourData = [f"{number:.6f}" for number in mm.ravel()]
            drawing.ContourSequence.append(item)
    return dataset


def square(low, high, top=None, bottom=None) -> list[tuple[float, float]]:
    top, bottom = low if top is None else top, high if bottom is None else bottom
    return [(low, top), (high, top), (high, bottom), (low, bottom)]


def filled(rings, shape) -> np.ndarray:
    box, (_, i, j) = enclosed([np.array(ring, float) for ring in rings], [0] * len(rings), (1, *shape))
    mask = np.zeros(shape, bool)
    if box.size:
        mask[i : i + box.shape[1], j : j + box.shape[2]] = box[0]
    return mask


# outlines


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=14)))
def test_an_outline_encloses_exactly_its_mask(mask):
    assert np.array_equal(filled(outlines(mask), mask.shape), mask)


@pytest.mark.parametrize("density", [0.2, 0.5, 0.62, 0.8, 0.97])
def test_each_piece_is_one_line_whatever_its_holes(density):
    mask = np.random.default_rng(0).random((90, 70)) < density
    rings = outlines(mask)
    assert len(rings) == ndimage.label(mask)[1]
    assert np.array_equal(filled(rings, mask.shape), mask)
    pieces = [filled([ring], mask.shape) for ring in rings]
    assert np.array_equal(np.sum(pieces, axis=0), mask)  # also for a program that joins what contours enclose


def test_outlines_of_all_masks_of_nine_pixels_are_exact():
    for number in range(1 << 9):
        mask = np.array([number >> bit & 1 for bit in range(9)], bool).reshape(3, 3)
        assert np.array_equal(filled(outlines(mask), mask.shape), mask)


def test_an_outline_has_no_needless_point_and_passes_half_way_between_centres():
    mask = np.zeros((9, 8), bool)
    mask[2:7, 3:6] = True
    (ring,) = outlines(mask)
    assert len(ring) == 8  # a box whose corners are cut
    assert ring.min(axis=0) == pytest.approx([2 - 0.49, 3 - 0.49])
    assert ring.max(axis=0) == pytest.approx([6 + 0.49, 5 + 0.49])
    (dot,) = outlines(np.array([[True]]))
    assert sorted(map(tuple, dot.round(6))) == [(-0.49, 0), (0, -0.49), (0, 0.49), (0.49, 0)]


# what contours enclose


def test_a_centre_on_a_contour_is_inside_on_all_sides():
    assert np.argwhere(filled([square(1, 3)], (6, 6))).tolist() == [[i, j] for i in (1, 2, 3) for j in (1, 2, 3)]
    assert filled([square(1, 3)], (6, 6)).sum() == 9
    assert filled([square(1.02, 2.98)], (6, 6)).sum() == 1
    assert filled([[(0, 0), (4, 4), (0, 4)]], (6, 6)).sum() == 15
    assert np.argwhere(filled([[(2, 1)]], (6, 6))).tolist() == [[2, 1]]
    assert filled([[(0, 2), (3, 2)]], (6, 6)).sum() == 4


def test_a_hole_is_a_hole_as_keyhole_and_as_a_contour_of_its_own_and_an_island_in_it_is_filled():
    outer, inner, island = square(0.5, 9.5), square(3.5, 6.5), square(4.5, 5.5)
    wanted = filled([outer], (11, 11)) & ~filled([inner], (11, 11))
    assert wanted.sum() == 81 - 9
    assert np.array_equal(filled([outer, inner], (11, 11)), wanted)
    slit = [*outer, outer[0], *inner, inner[0]]  # through the centres (1, 1), (2, 2) and (3, 3)
    assert np.array_equal(filled([slit], (11, 11)), wanted)
    assert filled([outer, inner, island], (11, 11)).sum() == 81 - 9 + 1


@given(
    st.lists(
        st.lists(st.tuples(*[st.integers(-6, 30).map(lambda n: n / 2 + 0.25)] * 2), min_size=3, max_size=7),
        min_size=1,
        max_size=3,
    )
)
def test_even_and_odd_are_those_of_a_ray_from_each_centre(rings):
    found = filled(rings, (12, 13))
    for i, j in np.ndindex(12, 13):
        crossings = 0
        for ring in rings:
            for (x0, y0), (x1, y1) in pairs(ring):
                if (y0 > j) != (y1 > j):
                    across = x0 + (j - y0) * (x1 - x0) / (y1 - y0) - i
                    if abs(across) < 0.05:
                        break  # too near to a line to tell
                    crossings += across > 0
                elif min(abs(y0 - j), abs(y1 - j)) < 0.05:
                    break
            else:
                continue
            break
        else:
            near = any(_distance((i, j), a, b) < 0.05 for ring in rings for a, b in pairs(ring))
            assert near or found[i, j] == crossings % 2


def pairs(ring):
    return zip(ring, [*ring[1:], ring[0]], strict=True)


def _distance(point, a, b) -> float:
    a, b, point = (np.array(p, float) for p in (a, b, point))
    length = (b - a) @ (b - a)
    t = 0.0 if length == 0 else np.clip((point - a) @ (b - a) / length, 0, 1)
    return float(np.linalg.norm(a + t * (b - a) - point))


# there and back


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_back_to_the_voxel(tmp_path, kind):
    stack = stack_of(store(series(**KINDS[kind]), tmp_path / "ct"))
    shape = (*stack.size, len(stack.frames))
    noise = np.random.default_rng(0).random(shape)
    border = np.zeros(shape, bool)
    border[[0, -1]] = border[:, [0, -1]] = True
    dot = np.zeros(shape, bool)
    dot[0, 0, -1] = dot[7, 5, 0] = dot[8, 6, 0] = True
    smooth = organ()[..., 6 : 6 + shape[2]] if kind == "one slice" else organ()
    masks = [smooth, noise < 0.3, noise < 0.7, border, dot, np.zeros(shape, bool), np.ones(shape, bool)]
    labels = on(stack, masks)
    found = read(parsed(labels), stack)
    assert found.geometry.same_as(labels.geometry)
    for label, mask in zip(labels.labels, masks, strict=True):
        assert np.array_equal(found.mask(label.name), mask), label.name
    assert found.source.warnings == ()
    assert found.source.stack is stack


@given(arrays(np.uint8, (7, 6, 3), elements=st.integers(0, 3)))
def test_any_label_map_survives(array):
    frames = tuple(Frame(Path("none"), "", 0, "1.2", f"1.{k}") for k in range(3))
    affines = np.stack([plane_affine((-9, 4 + k, 7.3 * k), OBLIQUE, (0.7, 1.1)) for k in range(3)])
    stack = Stack(frames, affines, (7, 6))
    labels = on(stack, [array == value for value in (1, 2, 3)])
    with pytest.MonkeyPatch.context() as patch:
        header = series()[0]
        patch.setattr("medseg.dicom.study.header", lambda frame: header)
        dataset = parsed(labels)
    found = read(dataset, stack)
    assert np.array_equal(found.array, array)


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_a_grid_may_be_stored_in_any_order(axial, order):
    masks = [organ(), np.random.default_rng(0).random(organ().shape) < 0.5]
    dataset = parsed(on(axial, masks))
    found = read(dataset, grid=grid_of(axial).reordered(order))
    for label, mask in zip(found.labels, masks, strict=True):
        assert np.array_equal(found.mask(label.name), order.apply(mask))


def test_contours_through_centres_and_half_way_between_slices_are_the_same_in_all_orders(axial):
    dataset = structure_set(
        axial, [(square(4, 9), 3.5), ([(12, 3), (20, 11), (12, 11)], 5), (square(2, 4), 7.7), (square(2, 6), 8.3)]
    )
    grid = grid_of(axial)
    wanted = read(dataset, grid=grid).array
    assert wanted.sum() == 36 + 45 + 9  # of the last two, both as near to slice 8, the lower one
    for order in ORDERS:
        assert np.array_equal(read(dataset, grid=grid.reordered(order)).array, order.apply(wanted))


def test_values_names_colours_codes_and_overlap_survive(axial):
    liver = Code(value="10200004", meaning="Liver")
    long = Code(value="a code of more than sixteen characters", meaning="Kidney", scheme="99MEDSEG")
    left = Code(value="7771000", meaning="Left")
    labels = (
        Label(value=700, name="Leber größer", color=(1, 2, 255), code=liver),
        Label(value=4, name="kidney", color=(9, 8, 7), code=long, modifier=left),
        Label(value=65535, name="nothing", color=(0, 0, 0)),
    )
    left_half = np.zeros(organ().shape, bool)
    left_half[:16] = True
    found = read(parsed(on(axial, [organ(), left_half, organ() & False], labels)), axial)
    kept = [label.model_copy(update={"atoms": ()}) for label in found.labels]
    assert kept == [label.model_copy(update={"atoms": ()}) for label in labels]
    assert np.array_equal(found.mask("kidney") & found.mask("Leber größer"), organ() & left_half)
    assert not found.mask("nothing").any()


def test_a_contour_names_its_image_and_in_a_multi_frame_object_its_frame(axial):
    frames = tuple(Frame(axial.frames[0].path, "", k + 1, "1.2.3", "1.2.4") for k in range(12))
    stack = Stack(frames, axial.affines, axial.size)
    dataset = parsed(on(stack, [organ()]))
    (series_item,) = (
        dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence
    )
    assert len(series_item.ContourImageSequence) == 1
    for contour in dataset.ROIContourSequence[0].ContourSequence:
        (image,) = contour.ContourImageSequence
        z = float(contour.ContourData[2])
        assert image.ReferencedFrameNumber == round((z - 100) / 2.5) + 1
        assert image.ReferencedSOPInstanceUID == "1.2.4"
    dataset = parsed(on(axial, [organ()]))
    for contour in dataset.ROIContourSequence[0].ContourSequence:
        k = round((float(contour.ContourData[2]) - 100) / 2.5)
        assert contour.ContourImageSequence[0].ReferencedSOPInstanceUID == axial.frames[k].sop_instance
        assert "ReferencedFrameNumber" not in contour.ContourImageSequence[0]
    assert source_instances(dataset) == {frame.sop_instance for frame in axial.frames}


def test_a_piece_whose_contour_is_too_long_for_a_number_string_is_cut_and_comes_back_whole(tmp_path):
    mask = np.zeros((160, 160, 1), bool)
    mask[2:-2, 2:-2] = True
    mask[4:-4:3, 4:-4:3] = False  # 2601 holes in one piece
    stack = stack_of(store(series(np.zeros(mask.shape, np.int16)), tmp_path / "ct"))
    dataset = parsed(on(stack, [mask]))
    contours = dataset.ROIContourSequence[0].ContourSequence
    assert len(contours) > 1
    assert all(contour.get_item("ContourData").VR == "DS" for contour in contours)
    assert np.array_equal(read(dataset, stack).mask("label 1"), mask)


def test_patient_study_and_frame_of_reference_are_those_of_the_scan(axial):
    made = datetime(2025, 6, 7, 8, 9, 10)  # noqa: DTZ001 - DICOM dates name no zone
    dataset = parsed(on(axial, [organ()]), description="by \\ hand", made=made)
    source = dcmread(axial.frames[0].path)
    for keyword in (
        *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime"),
        *("StudyID", "AccessionNumber", "FrameOfReferenceUID"),
    ):
        assert dataset[keyword].value == source[keyword].value
    assert dataset.SeriesInstanceUID != source.SeriesInstanceUID
    assert dataset.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert (dataset.Modality, dataset.ApprovalStatus, dataset.Manufacturer) == ("RTSTRUCT", "UNAPPROVED", "medseg")
    assert (dataset.StructureSetDate, dataset.StructureSetTime) == ("20250607", "080910")
    assert dataset.SeriesDescription == "by hand"


def test_the_same_result_has_the_same_bytes_and_another_one_another_name(axial):
    made = datetime(2025, 6, 7, 8, 9, 10)  # noqa: DTZ001 - DICOM dates name no zone
    one = encode_structures(on(axial, [organ()]), PRODUCER, made=made)
    assert encode_structures(on(axial, [organ()]), PRODUCER, made=made) == one
    changed = organ()
    changed[0, 0, 0] = True
    first, second = dcmread(io.BytesIO(one)), parsed(on(axial, [changed]))
    assert first.SeriesInstanceUID == second.SeriesInstanceUID
    assert first.SOPInstanceUID != second.SOPInstanceUID


def test_a_name_in_another_character_set_stays_that_name(tmp_path):
    datasets = series()
    for dataset in datasets:
        dataset.SpecificCharacterSet = "ISO_IR 100"
        dataset.PatientName = "Müller^Jörg"
        dataset.StudyDescription = "Schädel"
    stack = stack_of(store(datasets, tmp_path / "ct"))
    dataset = parsed(on(stack, [organ()]))
    assert dataset.PatientName == "Müller^Jörg"
    assert dataset.StudyDescription == "Schädel"


def test_dates_that_are_none_are_left_empty_and_other_odd_values_passed_on(tmp_path):
    datasets = series()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for dataset in datasets:
            dataset.PatientBirthDate = "1970-01-02"
            dataset.AccessionNumber = "more than sixteen characters"
            del dataset.StudyID, dataset.PatientSex
        stack = stack_of(store(datasets, tmp_path / "ct"))
    content = encode_structures(on(stack, [organ()]), PRODUCER)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = dcmread(io.BytesIO(content))
        assert (dataset.PatientBirthDate, dataset.AccessionNumber) == ("", "more than sixteen characters")
        assert (dataset.StudyID, dataset.PatientSex) == ("", "")


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"])
def test_a_scan_without_a_uid_that_must_be_named_cannot_have_structures(tmp_path, keyword):
    datasets = series()
    for dataset in datasets:
        del dataset[keyword]
    stack = stack_of(store(datasets, tmp_path / "ct"))
    with pytest.raises(UsageError, match=keyword):
        encode_structures(on(stack, [organ()]), PRODUCER)


def test_labels_that_do_not_lie_on_dicom_images_cannot_be_structures(axial, tmp_path):
    labels = on(axial, [organ()])
    with pytest.raises(UsageError, match="DICOM"):
        encode_structures(LabelMap(labels.array, labels.geometry, labels.labels), PRODUCER)
    with pytest.raises(UsageError, match="at least one label"):
        encode_structures(LabelMap(labels.array, labels.geometry, (), labels.source), PRODUCER)
    gone = Stack(tuple(Frame(tmp_path / "gone", "", 0, "1.2", "1.3") for _ in range(12)), axial.affines, axial.size)
    with pytest.raises(UsageError, match="cannot be read"):
        encode_structures(on(gone, [organ()]), PRODUCER)
    nameless = Stack(tuple(Frame(f.path, "", 0, f.sop_class, "") for f in axial.frames), axial.affines, axial.size)
    with pytest.raises(UsageError, match="SOPInstanceUID"):
        encode_structures(on(nameless, [organ()]), PRODUCER)


def test_names_fit_their_element_and_stay_distinct(axial):
    labels = [Label(value=1, name="x" * 70 + "a"), Label(value=2, name="x" * 70 + "b"), Label(value=3, name="a\\b\nc")]
    dataset = parsed(on(axial, [organ()] * 3, labels))
    names = [item.ROIName for item in dataset.StructureSetROISequence]
    assert len({*names}) == 3
    assert max(map(len, names)) <= 64
    assert names[2] == "a b c"


# files by any writer


def test_without_a_scan_or_a_grid_there_is_nothing_to_draw_on(axial):
    error = refused(parsed(on(axial, [organ()])))
    assert error.code == "NO_GRID"
    assert "--grid SCAN" in error.hint
    for shift in (axial.affines * 0 + axial.affines[0], np.concatenate([axial.affines[:11], axial.affines[:1]])):
        uneven = Stack(axial.frames, shift, axial.size)
        assert refused(parsed(on(axial, [organ()])), uneven).code == "NO_GRID"


def test_a_finer_grid_leaves_slices_empty_and_says_so(axial):
    dataset = parsed(on(axial, [organ()]))
    affine = grid_of(axial).affine.copy()
    affine[:3, 2] /= 2
    found = read(dataset, grid=Geometry(affine, (40, 32, 23)))
    assert np.array_equal(found.array[..., ::2] > 0, organ())
    assert not found.array[..., 1::2].any()
    assert found.source.warnings == (
        "1 structures are drawn on every second slice or fewer; the slices between are left empty",
    )


def test_on_a_coarser_grid_a_slice_takes_the_nearest_contours_and_no_mixture(axial):
    dataset = structure_set(axial, [(square(4.5, 9.5), 2), (square(3.5, 12.5), 2.3), (square(4.5, 9.5), 3)])
    found = read(dataset, grid=grid_of(axial))
    assert found.counts() == {"label 1": 50}
    assert (
        "1 contours lie so close that others are nearer to the same slice; they are left out" in found.source.warnings
    )


def test_contours_off_the_slices_are_drawn_on_the_nearest_or_left_out_and_counted(axial):
    dataset = structure_set(axial, [(square(4.5, 9.5), 2.3), (square(4.5, 9.5), -0.6), (square(4.5, 9.5), 11.4)])
    found = read(dataset, axial)
    assert found.array[..., 2].sum() == found.array[..., 11].sum() == 25
    assert found.array.sum() == 50
    assert found.source.warnings[:2] == (
        "1 contours lie outside the slices of the grid; they are left out",
        "2 contours lie between the slices of the grid; they are drawn on the nearest slice",
    )


def test_contours_beyond_the_edge_are_cut_and_counted(axial):
    found = read(structure_set(axial, [(square(-5.2, 3.5), 1)], [(square(100, 200), 1)]), axial)
    assert found.counts() == {"label 1": 16, "label 2": 0}
    assert found.source.warnings == ("2 contours reach beyond the edge of the slices; what lies outside is left out",)


def test_points_and_open_lines_are_left_out_and_counted(axial):
    found = read(structure_set(axial, [(square(2, 5), 1), (square(2, 5), 2)], kind="OPEN_PLANAR"), axial)
    assert found.counts() == {"label 1": 0}
    assert found.source.warnings == ("2 contours are points, open lines or of an unknown kind; they are left out",)


def test_holes_as_contours_of_their_own_are_holes(axial):
    dataset = structure_set(axial, [(square(2.5, 12.5), 1), (square(5.5, 8.5), 1)], kind="CLOSEDPLANAR_XOR")
    assert read(dataset, axial).counts() == {"label 1": 91}


def test_a_contour_that_is_stored_twice_does_not_undo_itself(axial):
    found = read(structure_set(axial, [(square(2.5, 12.5), 1)] * 2), axial)
    assert found.counts() == {"label 1": 100}
    assert found.source.warnings == ("1 contours are stored twice; they are taken once",)


def test_lines_as_thin_as_a_pixel_survive_where_they_run_through_centres(axial):
    found = read(structure_set(axial, [([(3, 3), (9, 3), (9, 8), (9, 3)], 1), ([(20, 20)], 1)]), axial)
    assert found.counts() == {"label 1": 7 + 5 + 1}
    assert found.source.warnings == (
        "1 contours have fewer than three points; they hold the pixels whose centres they pass",
    )


def test_numbers_that_are_no_values_become_values_in_order_and_names_are_made_distinct(axial):
    dataset = structure_set(axial, [(square(2.5, 4.5), 1)], [(square(6.5, 9.5), 1)])
    for item, drawing, number in zip(
        dataset.StructureSetROISequence, dataset.ROIContourSequence, (0, 70000), strict=True
    ):
        item.ROINumber = drawing.ReferencedROINumber = number
        item.ROIName = "liver"
        del drawing.ROIDisplayColor
    dataset.StructureSetROISequence.append(Dataset())
    dataset.StructureSetROISequence[2].ROINumber = 5
    found = read(dataset, axial)
    assert found.counts() == {"liver": 4, "liver (2)": 9, "structure 3": 0}
    assert [label.value for label in found.labels] == [1, 2, 3]
    assert found.labels[0].color is None


@pytest.mark.parametrize(("degrees", "code"), [(0.3, None), (2, "GEOM_OBLIQUE"), (90, None), (45, "GEOM_OBLIQUE")])
def test_contours_are_read_on_planes_that_are_parallel_to_them_alone(axial, degrees, code):
    dataset = parsed(on(axial, [organ()]))
    turn = np.eye(4)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn[1:3, 1:3] = [[c, -s], [s, c]]
    grid = grid_of(axial)
    centre = np.eye(4)
    centre[:3, 3] = grid.to_world((np.array(grid.shape) - 1) / 2)
    turned = Geometry(centre @ turn @ np.linalg.inv(centre) @ grid.affine, grid.shape)
    if code:
        assert refused(dataset, grid=turned).code == code
        return
    found = read(dataset, grid=turned).array > 0
    assert found.any()
    if degrees < 1:
        assert 2 * (found & organ()).sum() / (found.sum() + organ().sum()) > 0.97


def test_contours_of_another_frame_of_reference_are_refused(axial, tmp_path):
    other = stack_of(store(series(uid="1.2.3.4"), tmp_path / "other"))
    dataset = parsed(on(axial, [organ()]))
    assert refused(dataset, other).code == "FRAME_OF_REFERENCE"
    assert read(dataset, grid=grid_of(other)).array.any()


def test_a_contour_whose_points_leave_its_plane_is_refused(axial):
    dataset = parsed(on(axial, [organ()]))
    data = dataset.ROIContourSequence[0].ContourSequence[0].ContourData
    data[2] = f"{float(data[2]) + 3:.3f}"
    assert refused(dataset, axial).code == "CONTOUR_NOT_PLANAR"


@pytest.mark.parametrize(
    "text", ["1\\2", "1\\2\\3\\4", "nan\\0\\0", "0\\inf\\0", "1e308\\0\\0", "1\\x\\2", "", "0\\0\\0\\1\\1\\0"]
)
def test_coordinates_that_cannot_be_are_refused(axial, text):
    dataset = parsed(on(axial, [organ()]))
    contour = dataset.ROIContourSequence[0].ContourSequence[0]
    contour.add(DataElement("ContourData", "DS", text, already_converted=True))
    for again in (dataset, _rewritten(dataset)):
        assert refused(again, axial).code == "HEADER"


def test_a_contour_that_lies_about_its_number_of_points_is_refused(axial):
    dataset = parsed(on(axial, [organ()]))
    dataset.ROIContourSequence[0].ContourSequence[0].NumberOfContourPoints = 3
    assert refused(dataset, axial).code == "HEADER"


def _rewritten(dataset) -> Dataset:
    file = io.BytesIO()
    dataset.save_as(file)
    return dcmread(io.BytesIO(file.getvalue()))


def _elements(dataset, path=()):
    """Yield the path of every element, the first item of each sequence entered."""
    for element in dataset:
        yield (*path, element.tag)
        if element.VR == "SQ" and element.value:
            yield from _elements(element.value[0], (*path, element.tag))


def _holder(dataset, path) -> Dataset:
    for tag in path[:-1]:
        dataset = dataset[tag].value[0]
    return dataset


FAULTS = {
    "deleted": None,
    "empty": b"",
    "nonsense": b"~\x01?\\nan ",
    "binary": b"\xff\xfe\x00~",
    "item": b"\xfe\xff\x00\xe0~",
}


@pytest.mark.parametrize("vr", ["own", "UN"])
@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_element_is_missing_or_broken_nothing_but_a_scan_error_escapes(axial, fault, vr):
    coded = Label(value=4, name="b", code=Code(value="1", meaning="b"), modifier=Code(value="2", meaning="c"))
    content = encode_structures(on(axial, [organ(), organ() & False], [ORGAN, coded]), PRODUCER)
    codes = set()
    for path in list(_elements(dcmread(io.BytesIO(content)))):
        dataset = dcmread(io.BytesIO(content))
        holder, tag = _holder(dataset, path), path[-1]
        own = holder[tag].VR
        del holder[tag]
        value = FAULTS[fault]
        if value is not None:
            holder[tag] = RawDataElement(tag, own if vr == "own" else vr, len(value), value, 0, False, True)
        source_instances(dataset)
        try:
            found = read(dataset, axial)
        except ScanError as error:
            codes.add(error.code)
        else:
            missing = found.source.warnings or keyword_for_tag(tag) == "ContourSequence"
            assert np.array_equal(found.array > 0, organ()) or missing
    assert "HEADER" in codes
    assert codes <= {"HEADER", "FRAME_OF_REFERENCE"}


def test_bytes_changed_at_random_are_read_or_refused(axial):
    content = encode_structures(on(axial, [organ()]), PRODUCER)
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(300):
        damaged = bytearray(content)
        for place in rng.integers(132, len(damaged), rng.integers(1, 5)):
            damaged[place] = rng.integers(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                dataset = dcmread(io.BytesIO(bytes(damaged)), force=True)
            except Exception:  # noqa: BLE001 - what pydicom makes of it is not tested here
                continue
        try:
            read(dataset, grid=grid_of(axial))
            outcomes.add("read")
        except ScanError as error:
            outcomes.add(error.code)
    assert {"read", "HEADER"} <= outcomes


# outside judges


@pytest.fixture(scope="module")
def judges() -> Path:
    folder = os.environ.get("MEDSEG_JUDGES")
    if not folder:
        pytest.skip("MEDSEG_JUDGES names no folder of outside judges")
    return Path(folder)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Stack:
    """A series of a realistic size, with square pixels: rt-utils takes rows for columns."""
    empty = np.zeros((128, 128, 20), np.int16)
    return stack_of(store(series(empty, spacing=(0.9, 0.9)), tmp_path_factory.mktemp("large") / "ct"))


def realistic() -> dict[str, np.ndarray]:
    """Return an organ of 128 x 128 x 20 voxels, and the same with two holes and an island in one of them."""
    solid = organ((128, 128, 20))
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in solid.shape), indexing="ij"))
    away = np.linalg.norm(grid - np.array([-0.3, 0.2, 0.1]).reshape(3, 1, 1, 1), axis=0)
    second = np.linalg.norm(grid - np.array([-0.3, 0.45, 0.1]).reshape(3, 1, 1, 1), axis=0)
    return {"solid": solid, "holes": solid & ((away > 0.18) | (away < 0.08)) & (second > 0.06)}


def dice(a, b) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def by_rt_utils(judges, code, *paths):
    text = "import sys\nimport numpy as np\nfrom rt_utils import RTStructBuilder\n" + code
    subprocess.run([judges / "python", "-c", text, *paths], check=True, capture_output=True)


def test_dciodvfy_finds_no_fault(large, tmp_path):
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy is not installed")
    code = Code(value="10200004", meaning="Liver")
    labels = [
        Label(value=1, name="a", code=code, modifier=Code(value="7771000", meaning="Left")),
        Label(value=2, name="b"),
        Label(value=3, name="empty"),
    ]
    masks = [*realistic().values(), np.zeros((128, 128, 20), bool)]
    file = tmp_path / "structures.dcm"
    file.write_bytes(encode_structures(on(large, masks, labels), PRODUCER))
    said = subprocess.run(["dciodvfy", file], capture_output=True, text=True, check=False).stderr
    assert "RTStructureSet" in said
    assert [line for line in said.splitlines() if line.startswith(("Error", "Warning"))] == []


@pytest.mark.parametrize("kind", ["solid", "holes"])
def test_plastimatch_reads_what_is_written(judges, large, tmp_path, kind):
    mask = realistic()[kind]
    file, out = tmp_path / "structures.dcm", tmp_path / "out.nii.gz"
    file.write_bytes(encode_structures(on(large, [mask], [ORGAN]), PRODUCER))
    words = ["--input", file, "--referenced-ct", large.frames[0].path.parent, "--output-labelmap", out]
    subprocess.run([judges / "plastimatch", "convert", *words], check=True, capture_output=True)
    found = sitk.GetArrayFromImage(sitk.ReadImage(out)).T > 0
    assert dice(found, mask) >= 0.99


@pytest.mark.parametrize("kind", ["solid", "holes"])
def test_rt_utils_reads_what_is_written(judges, large, tmp_path, kind):
    mask = realistic()[kind]
    file, out = tmp_path / "structures.dcm", tmp_path / "out.npy"
    file.write_bytes(encode_structures(on(large, [mask], [ORGAN]), PRODUCER))
    code = "np.save(sys.argv[3], RTStructBuilder.create_from(*sys.argv[1:3]).get_roi_mask_by_name('organ'))"
    by_rt_utils(judges, code, large.frames[0].path.parent, file, out)
    assert dice(np.load(out).transpose(1, 0, 2), mask) >= 0.99


@pytest.mark.parametrize("kind", ["solid", "holes"])
def test_what_plastimatch_writes_is_read(judges, large, tmp_path, kind):
    mask = realistic()[kind]
    image = sitk.GetImageFromArray(mask.T.astype(np.uint8))
    image.SetSpacing((0.9, 0.9, 2.5))
    image.SetOrigin((-16.0, -14.4, 100.0))
    sitk.WriteImage(image, tmp_path / "mask.nii.gz")
    words = ["--input-ss-img", tmp_path / "mask.nii.gz", "--referenced-ct", large.frames[0].path.parent]
    words += ["--output-dicom", tmp_path / "out"]
    subprocess.run([judges / "plastimatch", "convert", *words], check=True, capture_output=True)
    (file,) = [path for path in (tmp_path / "out").iterdir() if dcmread(path).Modality == "RTSTRUCT"]
    found = read_structures(file, dcmread(file), grid=grid_of(large))
    assert len(found.labels) == 1
    assert dice(found.mask(found.labels[0].name), mask) >= 0.99


@pytest.mark.parametrize("pin_hole", [True, False])
@pytest.mark.parametrize("kind", ["solid", "holes"])
def test_what_rt_utils_writes_is_read(judges, large, tmp_path, kind, pin_hole):
    mask = realistic()[kind]
    np.save(tmp_path / "mask.npy", mask.transpose(1, 0, 2))
    code = "rt = RTStructBuilder.create_new(sys.argv[1])\n"
    code += f"rt.add_roi(mask=np.load(sys.argv[2]), name='organ', color=[9, 8, 7], use_pin_hole={pin_hole})\n"
    code += "rt.save(sys.argv[3])"
    file = tmp_path / "structures.dcm"
    by_rt_utils(judges, code, large.frames[0].path.parent, tmp_path / "mask.npy", file)
    found = read_structures(file, dcmread(file), large)
    assert found.label("organ").color == (9, 8, 7)
    assert dice(found.mask("organ"), mask) >= 0.99

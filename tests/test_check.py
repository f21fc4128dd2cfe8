"""`medseg check`: planted faults are found, named with numbers, and nothing else is."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ORDERS
from PIL import Image
from scipy import ndimage

from medseg.errors import GeometryError
from medseg.geometry import Geometry
from medseg.io import read_labels, write
from medseg.plan import Label
from medseg.training.alignment import RoundingError, laid
from medseg.training.check import check, inspection
from medseg.training.dataset import Case, Dataset, File, Finding
from medseg.training.layouts import find_dataset
from medseg.volume import LabelMap, Volume

SHAPE = (24, 22, 20)
GRID = Geometry(np.diag([1.0, 1.5, 2.0, 1.0]), SHAPE)
LABELS = (Label(value=1, name="front"), Label(value=2, name="back"))


def blob(seed, shape=SHAPE):
    """Return an image in which two halves of an ellipsoid are brighter, and their label: 1 in front, 2 behind."""
    rng = np.random.default_rng(seed)
    x, y, z = np.ogrid[tuple(slice(n) for n in shape)]
    centre = np.array(shape) / 2 + rng.uniform(-3, 3, 3)
    radii = rng.uniform(4, 6, 3)
    inside = sum(((a - c) / r) ** 2 for a, c, r in zip((x, y, z), centre, radii, strict=True)) < 1
    label = inside * np.where(y > centre[1], 1, 2)
    image = ndimage.gaussian_filter(rng.normal(0, 30, shape), 1) + 100 * inside + 20 * label
    return image.astype(np.float32), label.astype(np.uint8)


class Folder:
    """A data set in the making: cases of blobs, some with planted faults."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cases = []

    def add(self, image=None, label=None, *, grid=GRID, label_grid=None, group="", name=None, suffix=".nii.gz"):
        number = len(self.cases)
        own_image, own_label = blob(number)
        name = name or f"case_{number:02d}"
        images = image if isinstance(image, list) else [own_image if image is None else image]
        files = []
        for channel, array in enumerate(images):
            files.append(self.path / f"{name}_{channel:04d}.nii.gz")
            write(Volume(np.asarray(array)[None], grid), files[-1])
        reference = self.path / f"{name}_label{suffix}"
        label = own_label if label is None else label
        if isinstance(label, Path):
            reference = label
        elif isinstance(label, LabelMap):
            write(label, reference)
        elif label.dtype.kind == "f":
            write(Volume(label[None], label_grid or grid), reference)
        else:
            write(LabelMap(label, label_grid or grid), reference)
        self.cases.append(Case(name, tuple(map(File, files)), File(reference), group))
        return self.cases[-1]

    def fill(self, count=6):
        while len(self.cases) < count:
            self.add()
        return self

    def dataset(self, **said):
        return Dataset("blobs", tuple(self.cases), **{"labels": LABELS, **said})

    def check(self, *, fix=False, **said):
        return check(self.dataset(**said), fix=fix)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def codes(checked):
    return [(found.severity, found.code, found.case) for found in checked.findings]


def only(checked):
    """Return the one finding that there should be."""
    assert len(checked.findings) == 1, checked.findings
    return checked.findings[0]


def moved(voxels):
    """Return the grid of the blobs, moved along x."""
    affine = GRID.affine.copy()
    affine[0, 3] += voxels * GRID.spacing[0]
    return Geometry(affine, GRID.shape)


def test_a_sound_set_has_no_findings_and_its_facts_are_those_of_its_voxels(folder):
    checked = folder.fill().check()
    assert checked.findings == ()
    assert checked.dataset == replace(folder.dataset(), channels=("image",))
    facts, (image, label) = checked.survey.cases[3], blob(3)
    assert (facts.name, facts.shape, facts.spacing, facts.physical) == ("case_03", SHAPE, (1, 1.5, 2), True)
    assert facts.volumes_ml == pytest.approx({"front": (label == 1).sum() * 0.003, "back": (label == 2).sum() * 0.003})
    assert np.isin(facts.foreground, image[label > 0]).all()
    assert facts.foreground.shape == (1, (label > 0).sum())
    assert facts.whole.shape == (1, 2000)
    assert facts.whole.mean() == pytest.approx(image.mean(), abs=4)
    assert facts.floor_share == 1 / image.size


def test_nothing_depends_on_the_order_in_which_a_case_is_stored(tmp_path):
    plain, turned = Folder(tmp_path), Folder(tmp_path)
    for number in range(5):
        image, label = blob(number)
        plain.add(name=f"plain_{number}")
        one, other = ORDERS[7 * number + 3], ORDERS[47 - 5 * number]
        turned.add(
            one.apply(image),
            other.apply(label),
            grid=GRID.reordered(one),
            label_grid=GRID.reordered(other),
            name=f"turned_{number}",
        )
    names = [name for name in vars(plain.check().survey.cases[0]) if name not in {"name", "volumes_ml"}]
    for a, b in zip(plain.check().survey.cases, turned.check().survey.cases, strict=True):
        for name in names:
            np.testing.assert_allclose(vars(b)[name], vars(a)[name], rtol=1e-6, atol=1e-5)
        assert a.volumes_ml == pytest.approx(b.volumes_ml)
    doubles = check(Dataset("both", (*plain.cases, *turned.cases), labels=LABELS))
    assert [found.code for found in doubles.findings] == ["DUPLICATE"] * 5
    assert all("so is the label" in found.detail for found in doubles.findings)


def test_each_file_is_read_once(folder, monkeypatch):
    from medseg.training import dataset

    opened = Counter()
    for name in ("read", "read_labels"):
        original = getattr(dataset, name)
        monkeypatch.setattr(dataset, name, lambda path, f=original, **k: (opened.update([path]), f(path, **k))[1])
    told = []
    check(folder.fill(4).dataset(), progress=lambda stage, done: told.append((stage, done)))
    assert {*opened.values()} == {1}
    assert len(opened) == 8
    assert told[0] == ("check", 0)
    assert told[-1] == ("check", 1)
    assert told == sorted(told)


def test_a_file_that_cannot_be_read_is_named_with_the_reason_and_the_rest_goes_on(folder):
    bad = folder.add()
    bad.images[0].path.write_bytes(bad.images[0].path.read_bytes()[:2000])
    gone = folder.add()
    gone.reference.path.unlink()
    checked = folder.fill(7).check()
    assert codes(checked) == [("error", "TRUNCATED", bad.name), ("error", "MISSING", gone.name)]
    assert str(bad.images[0].path) in checked.findings[0].detail
    assert [case.name for case in checked.dataset.cases] == [f"case_{n:02d}" for n in range(2, 7)]
    assert len(checked.survey.cases) == 5


def test_findings_of_the_layout_come_first_among_their_kind(folder):
    earlier = (Finding("warning", "EXTRA_FILE", "x", "odd"), Finding("error", "NO_LABEL", "y", "bad"))
    folder.add(np.zeros(SHAPE, np.float32))
    checked = folder.fill(6).check(findings=earlier)
    assert codes(checked) == [
        ("error", "NO_LABEL", "y"),
        ("error", "CONSTANT", "case_00"),
        ("warning", "EXTRA_FILE", "x"),
    ]
    assert checked.dataset.findings == ()


@pytest.mark.parametrize("voxels", [0.0, 0.004, -0.009])
def test_header_rounding_is_passed_over_without_a_word(folder, voxels):
    folder.add(label_grid=moved(voxels))
    assert folder.fill().check().findings == ()


def test_a_reference_on_another_grid_is_named_with_mm_and_voxels(folder):
    folder.add(label_grid=moved(3))
    found = only(folder.fill().check())
    assert (found.severity, found.code, found.case) == ("error", "GRID", "case_00")
    assert "3 mm (3 voxels)" in found.detail
    assert only(folder.check(fix=True)).code == "GRID"


def test_a_reference_of_another_shape_is_named_with_both_shapes(folder):
    grid = Geometry(np.diag([1.1, 1.5, 2.0, 1.0]), (23, 22, 20))
    folder.add(label=blob(0)[1][:23], label_grid=grid)
    found = only(folder.fill().check(fix=True))
    assert found.code == "GRID"
    assert "23 x 22 x 20 voxels of 1.1 x 1.5 x 2 mm" in found.detail
    assert "24 x 22 x 20 voxels of 1 x 1.5 x 2 mm" in found.detail


def test_rounding_noise_is_an_error_until_it_is_accepted(folder):
    order = ORDERS[13]
    folder.add(label=order.apply(blob(0)[1]), label_grid=moved(0.05).reordered(order))
    found = only(folder.fill().check())
    assert (found.severity, found.code) == ("error", "GRID_ROUNDING")
    assert "0.05 mm (0.05 voxels)" in found.detail
    assert "--fix" in found.detail
    mended = folder.check(fix=True)
    assert (only(mended).severity, only(mended).code) == ("warning", "GRID_ROUNDING")
    assert mended.survey.cases[0].volumes_ml["front"] == pytest.approx((blob(0)[1] == 1).sum() * 0.003)
    label = mended.dataset.cases[0].labels(LABELS)
    np.testing.assert_array_equal(laid(label, GRID, fix=True).array, blob(0)[1])


def test_grids_near_45_degrees_are_told_from_rounding():
    def turned(degrees):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        affine = np.eye(4)
        affine[:2, :2] = [[c, -s], [s, c]]
        return Geometry(affine, SHAPE)

    label = LabelMap(blob(0)[1], turned(44.999))
    np.testing.assert_array_equal(laid(label, turned(45.001)).array, label.array)


def test_a_part_of_the_grid_is_put_into_its_place_when_asked(folder):
    label = blob(0)[1]
    box = GRID.cropped((2, 3, 1), (22, 20, 19))
    part = LabelMap(label[2:22, 3:20, 1:19], box)
    with pytest.raises(RoundingError, match="differ in shape"):
        laid(part, GRID)
    np.testing.assert_array_equal(laid(part, GRID, fix=True).array, label)
    with pytest.raises(GeometryError, match="labelled voxels lie outside"):
        laid(LabelMap(label, GRID), GRID.cropped((0, 0, 0), (12, 22, 20)), fix=True)


def test_a_grid_of_half_the_spacing_over_the_same_box_is_resampled_by_nearest_voxel():
    fine = GRID.respaced((0.5, 1.5, 2.0))
    label = LabelMap(np.repeat(blob(0)[1], 2, axis=0), fine)
    np.testing.assert_array_equal(laid(label, GRID, fix=True).array, blob(0)[1])


def test_pictures_must_agree_in_size(tmp_path):
    cases = []
    for number in range(6):
        image, label = blob(number, (30, 26, 20))
        colours = np.stack([image[..., 10] + shift for shift in (0, 20, 40)], -1).clip(0, 255).astype(np.uint8)
        paths = [tmp_path / f"{number}.png", tmp_path / f"{number}_label.png"]
        mask = label[..., 10] if number else label[:28, :, 10]
        Image.fromarray(colours).save(paths[0])
        Image.fromarray(mask).save(paths[1])
        cases.append(Case(str(number), (File(paths[0]),), File(paths[1])))
    checked = check(Dataset("pictures", tuple(cases), labels=LABELS))
    assert only(checked).code == "GRID"
    assert "the label has 26 x 28 x 1 pixels, the image 26 x 30 x 1" in only(checked).detail
    assert checked.dataset.channels == ("red", "green", "blue")
    facts = checked.survey.cases[0]
    assert (facts.physical, facts.spacing, facts.shape) == (False, (1, 1, 1), (26, 30, 1))
    assert facts.volumes_ml["front"] == (blob(1, (30, 26, 20))[1][..., 10] == 1).sum() / 1000
    write(
        LabelMap(blob(1, (30, 26, 20))[1][..., 10:11].swapaxes(0, 1), Geometry(np.eye(4), (26, 30, 1))),
        tmp_path / "x.nii",
    )
    cases[0] = replace(cases[1], reference=File(tmp_path / "x.nii"), name="mixed")
    found = check(Dataset("pictures", tuple(cases), labels=LABELS)).findings[0]
    assert (found.code, found.case) == ("GRID", "mixed")
    assert "the label has a size in mm, the image has none" in found.detail


def test_channels_on_two_grids_and_another_number_of_channels(folder):
    image = blob(0)[0]
    apart, fewer = folder.add([image, image]), folder.add([image])
    write(Volume(image[None], moved(2)), apart.images[1].path)
    for _ in range(5):
        noise = np.random.default_rng(len(folder.cases)).normal(size=SHAPE).astype(np.float32)
        folder.add([noise, blob(len(folder.cases))[0]])
    checked = folder.check()
    assert codes(checked) == [("error", "CHANNELS", apart.name), ("error", "CHANNELS", fewer.name)]
    assert "2 mm apart" in checked.findings[0].detail
    assert "1 channels, not 2" in checked.findings[1].detail
    assert checked.dataset.channels == ("channel 0", "channel 1")
    assert checked.survey.channels == 2
    assert "2 channels, not 1 (t1)" in folder.check(channels=("t1",)).findings[1].detail


def test_a_slice_among_volumes_and_a_picture_among_slices(folder, tmp_path):
    image, label = blob(0)
    grid = Geometry(GRID.affine, (24, 22, 1))
    flat = folder.add(image[..., 10:11], label[..., 10:11], grid=grid)
    found = only(folder.fill(6).check())
    assert (found.severity, found.code, found.case) == ("error", "DIMENSIONS", flat.name)
    assert "24 x 22 x 1" in found.detail
    slices = Folder(tmp_path)
    for number in range(5):
        image, label = blob(number)
        slices.add(image[..., 10:11], label[..., 10:11], grid=grid, name=f"slice_{number}")
    for name, array in (("p.png", image[..., 10].clip(0, 255)), ("p_label.png", label[..., 10])):
        Image.fromarray(array.astype(np.uint8)).save(tmp_path / name)
    slices.cases.append(Case("p", (File(tmp_path / "p.png"),), File(tmp_path / "p_label.png")))
    found = only(slices.check())
    assert (found.code, found.case) == ("PHYSICAL", "p")


def test_values_that_are_not_whole_are_named_with_their_counts(folder):
    label = blob(0)[1].astype(np.float32)
    label[0, 0, :3] = 0.5
    label[0, 0, 3] = -1
    folder.add(label=label)
    found = only(folder.fill().check())
    assert (found.severity, found.code) == ("error", "NOT_LABELS")
    assert "it holds -1 (1 voxels), 0.5 (3 voxels)" in found.detail


def test_whole_numbers_in_a_float_file_are_labels(folder):
    folder.add(label=blob(0)[1].astype(np.float32))
    assert folder.fill().check().findings == ()


def test_an_unknown_value_is_named_with_its_voxels_and_the_ignored_one_is_not(folder):
    label = blob(0)[1]
    label[0, 0, :4], label[1, 0, :5] = 7, 9
    folder.add(label=label)
    found = only(folder.fill().check(ignore=9))
    assert (found.severity, found.code) == ("error", "UNKNOWN_VALUE")
    assert "holds 7 (4 voxels), which is no label; labels are 1 front, 2 back" in found.detail


def test_ignored_voxels_are_neither_labelled_nor_noted(folder):
    image, label = blob(0)
    image[:4], label[:4] = 5000, 9
    folder.add(image, label)
    facts = folder.fill().check(ignore=9).survey.cases[0]
    assert facts.foreground.max() < 1000
    assert facts.whole.max() == 5000
    assert facts.volumes_ml["front"] == pytest.approx((label == 1).sum() * 0.003)


def test_empty_full_and_wholly_ignored_references(folder):
    folder.add(label=np.zeros(SHAPE, np.uint8))
    folder.add(label=np.full(SHAPE, 9, np.uint8))
    folder.add(label=np.full(SHAPE, 2, np.uint8))
    checked = folder.fill(8).check(ignore=9)
    assert codes(checked) == [
        ("error", "IGNORED", "case_01"),
        ("warning", "EMPTY", "case_00"),
        ("warning", "FULL", "case_02"),
    ]
    assert "back" in checked.findings[2].detail
    assert checked.survey.cases[0].foreground.shape == (1, 0)


def test_a_label_that_no_case_has_is_an_error_and_one_that_a_bad_case_has_is_none(folder):
    label = blob(0)[1]
    label[0, 0, 0] = 3
    folder.add(label=label, label_grid=moved(5))
    labels = (*LABELS, Label(value=3, name="tumour"), Label(value=4, name="cyst"))
    checked = folder.fill(6).check(labels=labels)
    assert codes(checked) == [("error", "GRID", "case_00"), ("error", "NEVER", "blobs")]
    assert "cyst (4)" in checked.findings[1].detail


def test_regions_count_all_their_atoms(folder):
    regions = (Label(value=3, name="whole", atoms=(1, 2)), Label(value=2, name="core", atoms=(2,)))
    folder.add(label=np.where(blob(0)[1] == 2, 2, 1).astype(np.uint8))
    checked = folder.fill().check(labels=regions)
    assert only(checked).code == "FULL"
    label = blob(1)[1]
    assert checked.survey.cases[1].volumes_ml == pytest.approx(
        {"whole": (label > 0).sum() * 0.003, "core": (label == 2).sum() * 0.003}
    )


def test_constant_images_and_constant_channels(folder):
    image = blob(0)[0]
    for number in range(5):
        folder.add([blob(number)[0], np.full(SHAPE, 3, np.int16) if number == 1 else image[::-1] * (number + 1)])
    folder.add([np.zeros(SHAPE, np.int16)] * 2)
    checked = folder.check()
    assert codes(checked) == [("error", "CONSTANT", "case_05"), ("warning", "CONSTANT", "case_01")]
    assert "every voxel of the image is 0" in checked.findings[0].detail
    assert "channel 1" in checked.findings[1].detail


def test_one_image_under_two_names_is_found_in_any_type_and_kept_on_one_side(folder):
    image = np.round(blob(0)[0])
    folder.add(image)
    folder.add(image.astype(np.int16), blob(0)[1] // 2, group="b")
    folder.add(group="b")
    folder.add(image.astype(np.float64)[::-1], blob(0)[1][::-1], grid=GRID.reordered(ORDERS[4]), group="a")
    checked = folder.fill(6).check()
    assert codes(checked)[:2] == [("warning", "DUPLICATE", "case_01"), ("warning", "DUPLICATE", "case_03")]
    assert "of case_00, but the labels differ" in checked.findings[0].detail
    assert "of case_00, so is the label" in checked.findings[1].detail
    assert codes(checked)[2:] == [("warning", "GROUP", "blobs")]
    assert [case.group for case in checked.dataset.cases] == ["a", "a", "a", "a", "", ""]


def test_duplicates_without_a_group_get_one(folder):
    folder.add(blob(9)[0])
    folder.add(blob(9)[0])
    checked = folder.fill().check()
    groups = [case.group for case in checked.dataset.cases]
    assert groups[0] == groups[1] != ""
    assert groups[2:] == [""] * 4


def test_one_label_of_two_images_is_an_error_that_names_both(folder):
    folder.add(label=blob(3)[1])
    checked = folder.fill(7).check()
    assert codes(checked) == [("error", "OTHER_LABEL", "case_00"), ("error", "OTHER_LABEL", "case_03")]
    assert "that of case_03" in checked.findings[0].detail
    assert "case_00" not in {case.name for case in checked.dataset.cases}


def test_one_label_of_most_images_is_the_nature_of_the_set_and_a_tiny_one_chance(folder):
    tiny = np.zeros(SHAPE, np.uint8)
    tiny[3, 3, 3:5] = 1
    folder.add(label=tiny)
    folder.add(label=tiny)
    assert {found.severity for found in folder.fill(7).check().findings} == {"warning"}
    for _ in range(9):
        folder.add(label=blob(40)[1])
    found = [found for found in folder.check().findings if "9 cases" in found.detail]
    assert [(one.severity, one.code) for one in found] == [("warning", "OTHER_LABEL")]


def test_swapped_labels_are_an_error_that_names_both(folder):
    folder.add(label=blob(1)[1])
    folder.add(label=blob(0)[1])
    checked = folder.fill(12).check()
    assert codes(checked) == [("error", "SWAPPED", "case_00"), ("error", "SWAPPED", "case_01")]
    assert "that of case_01" in checked.findings[0].detail
    assert len(checked.survey.cases) == 10


@pytest.mark.parametrize("fault", [lambda x: x[::-1, ::-1], lambda x: np.roll(x, 6, axis=1)], ids=["flip", "shift"])
def test_a_label_that_does_not_follow_its_image_is_a_warning(folder, fault):
    folder.add(label=np.ascontiguousarray(fault(blob(5)[1])), image=blob(5)[0])
    for number in range(20, 31):
        folder.add(*blob(number))
    found = only(folder.check())
    assert (found.severity, found.code, found.case) == ("warning", "MISFIT", "case_00")
    assert "agreement" in found.detail


def test_labels_without_any_trace_in_the_image_raise_no_suspicion(folder):
    for number in range(12):
        folder.add(np.random.default_rng(number).normal(size=SHAPE).astype(np.float32))
    assert folder.check().findings == ()


def test_spacing_far_from_the_rest_is_named(folder):
    folder.add(grid=Geometry(np.diag([1.0, 1.5, 7.0, 1.0]), SHAPE))
    found = only(folder.fill().check())
    assert (found.severity, found.code) == ("warning", "SPACING")
    assert "1 x 1.5 x 7 mm, the median is 1 x 1.5 x 2 mm" in found.detail


def test_few_cases_and_missing_groups_are_said_of_the_set(folder):
    folder.add(group="a")
    checked = folder.fill(3).check()
    assert codes(checked) == [("warning", "FEW", "blobs"), ("warning", "GROUP", "blobs")]
    assert "2 of 3 cases have no group (case_01, case_02)" in checked.findings[1].detail


def test_oddities_of_headers_are_said_once_for_their_kind(folder):
    for number in range(3):
        image = blob(number)[0]
        image[0, 0, : number + 1] = np.nan
        folder.add(image)
    found = only(folder.fill().check())
    assert (found.severity, found.code, found.case) == ("warning", "HEADER", "case_00")
    assert "1 voxels are NaN" in found.detail
    assert "(and so in 2 more)" in found.detail


def test_unknown_labels_are_named_by_their_values(folder):
    folder.add(label=blob(0)[1] * 100)
    checked = folder.fill().check(labels=(), ignore=200)
    assert [(label.name, label.atoms) for label in checked.dataset.labels] == [
        ("label 1", (1,)),
        ("label 2", (2,)),
        ("label 100", (100,)),
    ]
    assert checked.survey.cases[0].volumes_ml["label 100"] > 0
    assert checked.survey.cases[1].volumes_ml["label 100"] == 0


def test_files_that_name_their_labels_are_believed_where_they_agree(folder):
    liver, spleen = Label(value=1, name="liver", color=(1, 2, 3)), Label(value=2, name="spleen")
    for number in range(5):
        folder.add(label=LabelMap(blob(number)[1], GRID, (liver, spleen)), suffix=".seg.nrrd")
    other = (Label(value=2, name="liver"), Label(value=1, name="spleen"))
    folder.add(label=LabelMap(blob(5)[1], GRID, other), suffix=".seg.nrrd")
    checked = folder.check(labels=())
    assert [(label.name, label.value) for label in checked.dataset.labels] == [("liver", 1), ("spleen", 2)]
    assert checked.dataset.labels[0].color == (1, 2, 3)
    found = only(checked)
    assert (found.severity, found.code, found.case) == ("error", "TABLE", "case_05")
    assert "the value 2 'liver'; in the data set that is 1" in found.detail
    assert folder.check(labels=LABELS).findings == ()  # names of the data set, not of the files


def test_masks_in_a_lossy_format_are_refused(tmp_path):
    cases = []
    for number in range(5):
        image, label = blob(number)
        paths = [tmp_path / f"{number}.png", tmp_path / f"{number}_label.jpg"]
        for array, path in ((image[..., 10], paths[0]), (label[..., 10] * 100, paths[1])):
            Image.fromarray(array.clip(0, 255).astype(np.uint8)).save(path)
        cases.append(Case(str(number), (File(paths[0]),), File(paths[1])))
    checked = check(Dataset("jpeg", tuple(cases)))
    assert [found.code for found in checked.findings if found.severity == "error"] == ["LOSSY"] * 5
    assert checked.dataset.cases == ()
    assert checked.survey.cases == ()


def test_the_same_data_give_the_same_facts_and_findings(folder):
    folder.add(label=np.roll(blob(0)[1], 6, axis=0))
    first, second = folder.fill(10).check(), folder.check()
    assert first.findings == second.findings
    for one, other in zip(first.survey.cases, second.survey.cases, strict=True):
        np.testing.assert_array_equal(one.whole, other.whole)


def pairs(path, faults=()):
    """Write a folder of pairs; of the numbers in `faults` the label lies 0.06 voxels off."""
    for number in range(6):
        image, label = blob(number)
        for name, content in (
            ("images", Volume(image[None], GRID)),
            ("labels", LabelMap(label, moved(0.06) if number in faults else GRID)),
        ):
            (path / name).mkdir(parents=True, exist_ok=True)
            write(content, path / name / f"p{number}.nii.gz")
    return path


def test_the_command_prints_the_set_and_ends_with_0_when_it_is_sound(run, tmp_path):
    code, out, err = run("check", pairs(tmp_path / "set"), "--progress", "none")
    assert code == 0
    assert err == ""
    assert out.splitlines() == [
        "data set: set, 6 sound cases",
        "channels: image",
        "labels:   label 1 in 6, label 2 in 6",
        "shape:    24 x 22 x 20 voxels",
        "spacing:  1 x 1.5 x 2 mm",
        "sound: 6 cases",
    ]


def test_the_command_ends_with_2_on_errors_and_lists_all_in_json(run, tmp_path):
    data = pairs(tmp_path / "set", faults=(1, 4))
    code, out, _ = run("check", data, "--json", tmp_path / "all.json")
    assert code == 2
    assert [line.split()[:3] for line in out.splitlines()[5:7]] == [
        ["error", "GRID_ROUNDING", f"p{n}:"] for n in (1, 4)
    ]
    assert "2 errors, 1 warning" in out.splitlines()
    record = json.loads((tmp_path / "all.json").read_text())
    assert [found["case"] for found in record["errors"]] == ["p1", "p4"]
    assert record["warnings"][0]["code"] == "FEW"
    assert record["sound"] == ["p0", "p2", "p3", "p5"]
    assert record["survey"]["cases"] == 4


def test_the_command_writes_what_it_mended_and_touches_nothing_else(run, tmp_path):
    data = pairs(tmp_path / "set", faults=(1, 4))
    before = {path: path.read_bytes() for path in data.rglob("*.nii.gz")}
    code, out, _ = run("check", data, "--fix", tmp_path / "mended")
    assert code == 0
    assert "0 errors" not in out
    assert "2 warnings" in out
    assert {path: path.read_bytes() for path in data.rglob("*.nii.gz")} == before
    dataset = find_dataset(tmp_path / "mended" / "dataset.json")
    checked = check(dataset)
    assert [found.severity for found in checked.findings] == ["warning"] * len(checked.findings)
    assert not [found for found in checked.findings if found.code == "GRID_ROUNDING"]
    assert [case.name for case in checked.dataset.cases] == [f"p{n}" for n in range(6)]
    assert [label.name for label in checked.dataset.labels] == ["label 1", "label 2"]
    np.testing.assert_array_equal(read_labels(dataset.cases[4].reference.path).array, blob(4)[1])
    assert run("check", data, "--fix", tmp_path / "mended")[0] == 2  # what is there is never replaced


def test_mended_sets_keep_groups_regions_channels_and_the_ignored_value(folder, tmp_path):
    from medseg.training.check.mending import mend

    regions = (Label(value=7, name="whole", atoms=(1, 2)), Label(value=2, name="core", atoms=(2,)))
    for number in range(5):
        image, label = blob(number)
        label[0, 0, 0] = 9
        folder.add([image, image**2], label, label_grid=moved(0.03 * (number == 2)), group=f"g{number // 2}")
    checked = folder.check(fix=True, labels=regions, ignore=9, channels=("t1", "t2"))
    assert [found.code for found in checked.findings] == ["GRID_ROUNDING"]
    (tmp_path / "mended").mkdir()
    mend(checked, tmp_path / "mended")
    again = check(find_dataset(tmp_path / "mended" / "dataset.json")).dataset
    assert {label.name: (label.value, label.atoms) for label in again.labels} == {
        "whole": (7, (1, 2)),
        "core": (2, (2,)),
    }
    assert (again.channels, again.ignore) == (("t1", "t2"), 9)
    assert [case.group for case in again.cases] == ["g0", "g0", "g1", "g1", "g2"]
    assert [case.images for case in again.cases] == [case.images for case in folder.cases]


def test_files_that_hold_all_channels_stay_so_in_a_mended_set(folder, tmp_path):
    from medseg.training.check.mending import mend

    for number in range(5):
        case = folder.add(label_grid=moved(0.02))
        write(Volume(np.stack([blob(number)[0], blob(number + 9)[0]]), GRID), case.images[0].path)
        folder.cases[number] = replace(case, images=tuple(File(case.images[0].path, volume) for volume in (0, 1)))
    checked = folder.check(fix=True)
    (tmp_path / "mended").mkdir()
    mend(checked, tmp_path / "mended")
    again = check(find_dataset(tmp_path / "mended" / "dataset.json"))
    assert [case.images for case in again.dataset.cases] == [case.images for case in folder.cases]
    assert not [found for found in again.findings if found.severity == "error"]


def test_many_findings_of_one_code_are_cut(folder):
    from medseg.cli.checking import finding_lines

    earlier = tuple(Finding("warning", "EXTRA_FILE", f"file {n}", "odd") for n in range(51))
    lines = finding_lines(folder.fill().check(findings=earlier))
    assert sum("EXTRA_FILE" in line for line in lines) == 21
    assert lines[-2].endswith("and 31 more")
    assert lines[-1] == "51 warnings"


def test_the_hippocampus_set_is_sound(data):
    checked = check(find_dataset(data / "hippocampus"))
    assert len(checked.dataset.cases) == 208
    assert not [found for found in checked.findings if found.severity == "error"]
    assert len(checked.findings) <= 2


def test_swapped_hippocampi_are_found_among_forty(data):
    cases = list(find_dataset(data / "hippocampus").cases)
    by_shape = {}
    for place, case in enumerate(cases):
        by_shape.setdefault(case.scan().geometry.shape, []).append(place)
    one, other = next(places for places in by_shape.values() if len(places) == 2)
    chosen = [*[place for place in range(40) if place not in (one, other)], one, other]
    crossed = {one: cases[other].reference, other: cases[one].reference}
    some = tuple(replace(cases[n], reference=crossed.get(n, cases[n].reference)) for n in chosen)
    checked = check(Dataset("some", some, labels=LABELS))
    assert codes(checked) == [("error", "SWAPPED", cases[one].name), ("error", "SWAPPED", cases[other].name)]


def test_a_scene_is_what_the_check_saw(folder):
    case = folder.add()
    image, mask = inspection.scene_of(case, folder.dataset(), fix=False)
    np.testing.assert_array_equal(image[0], blob(0)[0])
    np.testing.assert_array_equal(mask, blob(0)[1] > 0)

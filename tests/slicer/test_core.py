"""3D Slicer's own core reads what medseg writes: names, colours, terminology, volumes, places, layers, reference grid.

MEDSEG_SLICER names a Python with slicer-core: pip install -r tests/slicer.txt in an environment of its own.
"""

import json
import os
import shutil
import subprocess
from ctypes.util import find_library
from pathlib import Path

import numpy as np
import pytest
from conftest import ORDERS, SAMPLES, rotation
from phantoms import OBLIQUE_AXES, organ, series, stack_of, store
from PIL import Image
from pydicom import dcmread

import medseg
from medseg.dicom.frames import Producer, grid_of, uid_of
from medseg.dicom.seg_writer import encode_segmentation
from medseg.geometry import Geometry
from medseg.plan import Code, Label
from medseg.volume import LabelMap, Source, overlaid

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parent / "in_core.py"
PRODUCER = Producer("tiny", "1.2", "ab" * 32)
ANATOMY = ["SCT", "123037004", "Anatomical Structure"]
TISSUE = ["SCT", "85756007", "Tissue"]
LIVER = Label(value=3, name="liver", code=Code(value="10200004", meaning="Liver"), color=(221, 130, 101))
KIDNEY = Label(
    value=700,
    name="left kidney",
    code=Code(value="64033007", meaning="Kidney"),
    modifier=Code(value="7771000", meaning="Left"),
)
PLAIN = Label(value=5, name="Gefäß: a|b~c^d")
LABELS = (LIVER, KIDNEY, PLAIN)


@pytest.fixture(scope="module")
def python():
    """The Python in which slicer-core is installed."""
    path = os.environ.get("MEDSEG_SLICER")
    if not path:
        pytest.skip("MEDSEG_SLICER names no Python with slicer-core")
    return path


@pytest.fixture
def ask(python, tmp_path):
    """A function that gives Slicer a request and returns its answer; Slicer must not complain."""

    def answer(*, complaints=(), **request):
        (tmp_path / "out").mkdir(exist_ok=True)
        request = json.dumps({"out": str(tmp_path / "out"), **request}, default=str)
        done = subprocess.run([python, PROGRAM], input=request, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said = [line for line in done.stderr.splitlines() if "ERR|" in line or "WARN|" in line]
        assert all(any(word in line for word in complaints) for line in said), done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return answer


def atoms(shape=(12, 10, 8)):
    """Return two organs that touch, and a voxel in two corners."""
    array = np.where(organ(shape), 3, 0).astype(np.uint16)
    array[shape[0] // 3 :][array[shape[0] // 3 :] == 3] = 700
    array[0, 0, 0] = array[-1, -1, -1] = 5
    return array


def turned(seed, shape=(12, 10, 8)):
    """Return an oblique grid whose voxels are longer along each axis than along the one before."""
    affine = np.eye(4)
    affine[:3, :3] = rotation(seed) * (0.31, 1.2, 5.0)
    affine[:3, 3] = (112.5, -80.25, 33)
    return Geometry(affine, shape)


def kept(tmp_path, name, labels, suffix=".seg.nrrd"):
    path = tmp_path / f"{name}{suffix}"
    medseg.write(labels, path)
    return path


def assert_same_places(points, labels, mask):
    """Voxels at these positions (mm, RAS) are those of the mask, each once."""
    points = np.load(points)
    index = labels.geometry.to_index(points)
    assert len(points) == mask.sum()
    assert np.abs(index - np.rint(index)).max(initial=0) < 1e-3
    found = np.zeros(mask.shape, bool)
    found[tuple(np.rint(index).astype(int).T)] = True
    assert np.array_equal(found, mask)


def assert_same_segments(said, labels):
    """Slicer has the labels, each with its name, colour, codes, volume and place, and the grid as its reference."""
    assert [segment["name"] for segment in said["segments"]] == [label.name for label in labels.labels]
    voxel_ml = abs(np.linalg.det(labels.geometry.affine[:3, :3])) / 1000
    counts = labels.counts()
    for segment, label in zip(said["segments"], labels.labels, strict=True):
        assert segment["color"] == pytest.approx([part / 255 for part in label.rgb], abs=1e-5)
        assert (segment["value"], segment["chosen"]) == (label.value, [True, True])
        assert segment["ml"] == pytest.approx(counts[label.name] * voxel_ml, rel=1e-6)
        assert_same_terminology(segment, label)
        assert_same_places(segment["points"], labels, labels.mask(label.name))
    assert_same_grid(said, labels.geometry)


def assert_same_terminology(segment, label):
    assert segment["understood"]
    assert segment["tag"].count("~") == 6
    assert segment["category"] == (ANATOMY if label.code else TISSUE)
    assert segment["type"] == (triple(label.code) if label.code else TISSUE)
    assert segment["modifier"] == (triple(label.modifier) if label.modifier else None)


def triple(code):
    return [code.scheme, code.value, code.meaning]


def assert_same_grid(said, geometry, tolerance=1e-6):
    assert said["reference"][:16] == pytest.approx(geometry.affine.ravel().tolist(), abs=tolerance)
    assert said["reference"][16:] == [end for size in geometry.shape for end in (0, size - 1)]


def assert_kept_by_slicer(said, labels):
    """What Slicer writes of it holds the same labels on the same grid."""
    again = medseg.read_labels(said["again"])
    assert again.geometry.same_as(labels.geometry, tolerance=1e-4)
    for label in labels.labels:
        assert np.array_equal(again.mask(label.name), labels.mask(label.name))
        assert (again.label(label.name).rgb, again.label(label.name).modifier) == (label.rgb, label.modifier)


def assert_same_to_slicerio(said, labels):
    found = said["slicerio"]
    assert np.allclose(found["ijk_to_lps"], np.diag([-1, -1, 1, 1]) @ labels.geometry.affine, atol=1e-9)
    assert found["counts"] == list(labels.counts().values())
    for segment, label in zip(found["segments"], labels.labels, strict=True):
        plain = label.name.encode("ascii", "ignore").decode()  # the NRRD reader below it drops all other letters
        assert (segment["name"], segment["labelValue"]) == (plain, label.value)
        assert segment.get("terminology", {}).get("type") == (triple(label.code) if label.code else None)


def test_a_prediction_has_in_slicer_the_names_colours_codes_and_volumes_of_its_report(ask, run, sample, tmp_path):
    shutil.copy(sample, tmp_path / "scan.nii.gz")
    formats = "nifti,nrrd,seg.nrrd"
    code, _, error = run("predict", tmp_path / "scan.nii.gz", "--format", formats, "--device", "cpu")
    assert code == 0, error
    report = json.loads((tmp_path / "scan_seg.json").read_text())["labels"]
    files = {name: tmp_path / f"scan_seg.{name}" for name in ("seg.nrrd", "nii.gz", "nrrd")}
    onto = dict.fromkeys(files, "scan")
    answer = ask(segmentations=files, scans={"scan": [tmp_path / "scan.nii.gz"]}, onto=onto, surface=["seg.nrrd"])
    found, labels = answer["segmentations"], medseg.read_labels(files["seg.nrrd"])
    assert_same_segments(found["seg.nrrd"], labels)
    assert_same_to_slicerio(found["seg.nrrd"], labels)
    for told, segment in zip(report, found["seg.nrrd"]["segments"], strict=True):
        assert segment["name"] == told["name"]
        assert segment["ml"] == pytest.approx(told["volume_ml"], abs=1e-3)
        assert segment["type"][1:] == [told["snomed"]["code"], told["snomed"]["meaning"]]
        assert segment["modifier"][1:] == list(told["snomed"]["modifier"].values())
    intensities = medseg.read(sample).array[0]
    for name, said in found.items():
        for label, segment, (count, mean) in zip(labels.labels, said["segments"], said["under"], strict=True):
            mask = labels.mask(label.name)
            assert_same_places(segment["points"], labels, mask)
            assert (segment["value"], count) == (label.value, mask.sum()), name
            assert mean == pytest.approx(intensities[mask].mean(), rel=1e-6)
    for told, ml in zip(report, found["seg.nrrd"]["surface_ml"], strict=True):
        assert ml == pytest.approx(told["volume_ml"], rel=0.05)  # smoothed


@pytest.mark.skipif(not find_library("EGL"), reason="no libEGL to draw with")
def test_slicer_draws_the_segments_in_their_colours(python, sample, tmp_path):
    mask = medseg.read_labels(SAMPLES / "t1_hippocampus.nii.gz").array > 90
    labels = LabelMap(
        mask.astype(np.uint8), medseg.read(sample).geometry, (Label(value=1, name="x", color=(9, 255, 40)),)
    )
    path = kept(tmp_path, "bright", labels)
    command = [python, PROGRAM, "--picture", tmp_path / "drawn.png", sample, path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    drawn = np.asarray(Image.open(tmp_path / "drawn.png")).astype(int)
    green = (drawn[..., 1] > drawn[..., 0] + 60) & (drawn[..., 1] > drawn[..., 2] + 60)
    assert all(view.sum() > 200 for view in np.array_split(green, 3, axis=1))


def test_oblique_and_anisotropic_grids_in_all_48_orders_lie_in_slicer_where_they_lie(ask, tmp_path):
    maps = {}
    for number, order in enumerate(ORDERS):
        stored, array = turned(number).reordered(order), order.apply(atoms())
        maps[f"order {number}"] = LabelMap(array, stored, LABELS)
    answer = ask(segmentations={name: kept(tmp_path, name, labels) for name, labels in maps.items()})
    for name, labels in maps.items():
        said = answer["segmentations"][name]
        assert said["layers"] == 1
        assert_same_segments(said, labels)
        assert_kept_by_slicer(said, labels)
        assert_same_to_slicerio(said, labels)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd"])
def test_plain_label_maps_have_their_values_and_places(ask, tmp_path, suffix):
    maps = {
        str(number): LabelMap(ORDERS[number].apply(atoms()), turned(number).reordered(ORDERS[number]))
        for number in range(0, 48, 7)
    }
    answer = ask(segmentations={name: kept(tmp_path, name, labels, suffix) for name, labels in maps.items()})
    for name, labels in maps.items():
        said = answer["segmentations"][name]
        assert [segment["value"] for segment in said["segments"]] == labels.values()
        for segment in said["segments"]:
            assert_same_places(segment["points"], labels, labels.array == segment["value"])
        assert_same_grid(said, labels.geometry, tolerance=1e-4)  # NIfTI holds positions in 32 bits


def test_labels_that_overlap_come_in_layers_and_those_that_are_missing_are_empty(ask, tmp_path):
    shape = (12, 10, 8)
    first, second = organ(shape), np.roll(organ(shape), 2, axis=0)
    lonely = np.zeros(shape, bool)
    lonely[-1, 0, -1] = True
    missed = Label(value=9, name="missed", code=Code(value="1", meaning="Missed"))
    whole = Label(value=1, name="whole")
    masks = [
        (missed, np.zeros(shape, bool)),
        (LIVER, first),
        (KIDNEY, second),
        (whole, first | second),
        (PLAIN, lonely),
    ]
    labels = overlaid(masks, turned(5))
    said = ask(segmentations={"a": kept(tmp_path, "a", labels)})["segmentations"]["a"]
    assert said["layers"] == 3
    assert_same_segments(said, labels)
    assert_kept_by_slicer(said, labels)
    assert_same_to_slicerio(said, labels)


def test_a_segmentation_of_slicer_is_the_same_to_it_after_medseg(ask, tmp_path):
    theirs = SAMPLES / "ct_chest.seg.nrrd"
    ours = kept(tmp_path, "ours", medseg.read_labels(theirs))
    scans = {"scan": [SAMPLES / "ct_chest.nrrd"]}
    answer = ask(segmentations={"theirs": theirs, "ours": ours}, scans=scans, onto={"theirs": "scan", "ours": "scan"})
    before, after = answer["segmentations"]["theirs"], answer["segmentations"]["ours"]
    assert after["reference"] == pytest.approx(before["reference"], abs=1e-9)
    assert after["under"] == before["under"]
    for one, two in zip(before["segments"], after["segments"], strict=True):
        for part in ("id", "name", "color", "value", "layer", "type", "modifier"):
            assert one[part] == two[part], part
        assert np.allclose(np.load(one["points"]), np.load(two["points"]), atol=1e-6)


def ct_scan(tmp_path):
    """Eight slices of a real CT, with UIDs, which the sample lacks."""
    folder = tmp_path / "ct"
    folder.mkdir()
    for path in sorted((SAMPLES / "ct_dicom").iterdir())[:8]:
        dataset = dcmread(path)
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid_of("ct", path.name)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid_of("ct", "study"), uid_of("ct", "series")
        dataset.save_as(folder / path.name)
    return folder, stack_of(folder)


def oblique_scan(tmp_path):
    folder = store(series(orientation=OBLIQUE_AXES, spacing=(0.31, 1.7), step=7.0), tmp_path / "oblique")
    return folder, stack_of(folder)


def sagittal_scan(tmp_path):
    folder = store(series(orientation=(0, 1, 0, 0, 0, -1)), tmp_path / "sagittal")
    return folder, stack_of(folder)


SCANS = [ct_scan, oblique_scan, sagittal_scan]


def drawn_on(stack):
    """Return labels on the grid of a series: two organs, and voxels in the corners."""
    grid = grid_of(stack)
    return LabelMap(atoms(grid.shape), grid, LABELS, Source(Path("scan"), "dicom", stack=stack))


@pytest.mark.parametrize("scan_of", SCANS)
def test_a_dicom_series_and_its_segments_lie_in_slicer_as_in_medseg(ask, tmp_path, scan_of):
    folder, stack = scan_of(tmp_path)
    scan, labels = medseg.read(folder), drawn_on(stack)
    files = sorted(folder.glob("*.dcm"))
    answer = ask(scans={"scan": files}, segmentations={"a": kept(tmp_path, "a", labels)}, onto={"a": "scan"})
    voxels, affine = np.load(answer["scans"]["scan"]["voxels"]), np.array(answer["scans"]["scan"]["ijk_to_ras"])
    centres = scan.geometry.to_world(np.argwhere(labels.array))
    theirs = np.rint(np.linalg.solve(affine, np.c_[centres, np.ones(len(centres))].T)[:3]).astype(int)
    assert np.array_equal(voxels[tuple(theirs)], scan.array[0][labels.array > 0])
    assert_same_segments(answer["segmentations"]["a"], labels)
    for label, (count, mean) in zip(LABELS, answer["segmentations"]["a"]["under"], strict=True):
        inside = scan.array[0][labels.mask(label.name)]
        assert (count, mean) == (len(inside), pytest.approx(inside.mean(), rel=1e-5))


def test_slicers_core_alone_reads_no_dicom_seg(ask, tmp_path):
    """It needs an extension, as 3D Slicer does; the tests below go that way and another."""
    _, stack = oblique_scan(tmp_path)
    (tmp_path / "seg.dcm").write_bytes(encode_segmentation(drawn_on(stack), PRODUCER))
    answer = ask(segmentations={"seg": tmp_path / "seg.dcm"}, complaints=["Unsupported file type"])
    assert answer["segmentations"] == {"seg": None}


@pytest.mark.parametrize("scan_of", SCANS)
def test_a_dicom_seg_that_dcmqi_unpacks_for_slicer_has_its_names_codes_and_places(ask, tmp_path, scan_of):
    program = Path(os.environ.get("MEDSEG_JUDGES", "")) / "segimage2itkimage"
    if not program.is_file():
        pytest.skip("MEDSEG_JUDGES names no folder with dcmqi's segimage2itkimage")
    _, stack = scan_of(tmp_path)
    labels = drawn_on(stack)
    (tmp_path / "seg.dcm").write_bytes(encode_segmentation(labels, PRODUCER))
    command = [program, "--inputDICOM", "seg.dcm", "--outputDirectory", ".", "-t", "nrrd", "-p", "q"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = [item for (item,) in json.loads((tmp_path / "q-meta.json").read_text())["segmentAttributes"]]
    found = ask(segmentations={str(n): tmp_path / f"q-{n}.nrrd" for n in (1, 2, 3)})["segmentations"]
    for number, (item, label) in enumerate(zip(told, LABELS, strict=True), start=1):
        (segment,) = found[str(number)]["segments"]
        assert_same_places(segment["points"], labels, labels.mask(label.name))
        assert item["SegmentLabel"] == label.name
        assert item["recommendedDisplayRGBValue"] == pytest.approx(label.rgb, abs=1)
        assert item["SegmentedPropertyTypeCodeSequence"]["CodeValue"] == (label.code.value if label.code else TISSUE[1])
        modifier = item.get("SegmentedPropertyTypeModifierCodeSequence", {}).get("CodeValue")
        assert modifier == (label.modifier.value if label.modifier else None)


@pytest.mark.parametrize("scan_of", SCANS)
def test_a_dicom_seg_that_medseg_converts_is_whole_in_slicer(ask, run, tmp_path, scan_of):
    folder, stack = scan_of(tmp_path)
    labels = drawn_on(stack)
    kept(tmp_path, "drawn", labels)
    code, _, error = run("convert", tmp_path / "drawn.seg.nrrd", tmp_path / "seg.dcm", "--scan", folder)
    assert code == 0, error
    code, _, error = run("convert", tmp_path / "seg.dcm", tmp_path / "back.seg.nrrd", "--scan", folder)
    assert code == 0, error
    said = ask(segmentations={"a": tmp_path / "back.seg.nrrd"})["segmentations"]["a"]
    back = medseg.read_labels(tmp_path / "back.seg.nrrd")
    assert_same_segments(said, back)
    for label in LABELS:
        assert np.array_equal(back.mask(label.name), labels.mask(label.name))
        assert (back.label(label.name).code, back.label(label.name).modifier) == (label.code, label.modifier)

"""A folder of scans to label, as the Slicer module of MONAI Label works through it with its own client."""

import hashlib
import os
import shutil
import urllib.request
from pathlib import Path
from urllib.parse import quote_plus

import httpx
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import smooth_scan
from monai_client import Module, Refused, connecting
from serving import served

import medseg
from medseg import Geometry, LabelMap, Volume
from medseg.plan import Label

SHAPE = (16, 17, 18)
HOSTILE = {
    "no file at all": b"",
    "random bytes": np.random.default_rng(0).bytes(5000),
    "a pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "a bomb": None,
    "half a file": None,
    "colours": None,
    "fractions": None,
    "another grid": None,
}


@pytest.fixture
def connect(tmp_path):
    with connecting(tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    place = tmp_path_factory.mktemp("labelling")
    (place / "scans").mkdir()
    with served(place, "--datastore", place / "scans") as one:
        yield one


@pytest.fixture
def folder(server):
    """Three scans, of which one has no plain name."""
    place = server.folder / "scans"
    shutil.rmtree(place)
    place.mkdir()
    for seed, name in enumerate(("a.nii.gz", "b 2.nrrd", "ç.nii")):
        medseg.write(smooth_scan(SHAPE, seed=seed, spacing=(1, 1.5, 2)), place / name)
    return place


@pytest.fixture
def module(connect, server, folder):
    return Module(connect(server.url))


def drawn(scan: Path, path: Path, values=(1, 2)) -> Path:
    """Write a label map as the module does by ITK, on the grid of a scan."""
    array = np.zeros(medseg.read(scan).geometry.shape, np.uint8)
    for value in values:
        array[value : value + 3, 4:9, 5] = value
    image = sitk.GetImageFromArray(array.T)
    image.CopyInformation(sitk.ReadImage(str(scan)))
    sitk.WriteImage(image, str(path))
    return path


def next_scan(module: Module, server, folder: Path) -> tuple[dict, Path]:
    """Press 'Next Sample': the module fetches the scan by itself, and holds it against the checksum."""
    sample = module.client.next_sample("first", {})
    if not sample:
        return {}, folder
    file = folder / sample["name"]
    with urllib.request.urlopen(f"{server.url}/datastore/image?image={quote_plus(sample['id'])}") as answer:
        file.write_bytes(answer.read())
    assert sample["checksum"] == f"SHA256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    return sample, file


def test_a_person_labels_all_scans_one_after_the_other(module, server, folder, tmp_path):
    assert module.info["strategies"].keys() == {"first"}
    assert module.info["datastore"] == {"total": 3, "completed": 0}
    seen = []
    for number in range(3):
        module.sample, file = next_scan(module, server, tmp_path)
        seen.append(module.sample["id"])
        segmented, labels = module.segment("tiny")
        assert labels == ["front", "back"]
        assert sitk.ReadImage(str(segmented)).GetSize() == SHAPE
        told = module.submit(drawn(file, tmp_path / "label.nii.gz"), labels)
        assert told == {"image": module.sample["id"], "label": module.sample["id"]}
        assert module.client.info()["datastore"] == {"total": 3, "completed": number + 1}
    assert seen == ["a", "b 2", "ç"]
    assert next_scan(module, server, tmp_path)[0] == {}
    for name, scan in (("a", "a.nii.gz"), ("b 2", "b 2.nrrd"), ("ç", "ç.nii")):
        kept = medseg.read_labels(folder / "labels" / "final" / f"{name}.nii.gz")
        assert np.array_equal(kept.array, medseg.read_labels(drawn(folder / scan, tmp_path / "again.nii.gz")).array)
        assert kept.geometry.same_as(medseg.read(folder / scan).geometry, tolerance=1e-4)
        fetched = module.client.download_label(name, "final")
        assert fetched.endswith(".nii.gz")
        assert Path(fetched).read_bytes() == (folder / "labels" / "final" / f"{name}.nii.gz").read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["a.nii.gz", "b 2.nrrd", "labels", "ç.nii"]
    assert not [path for path in server.spool() if path.stat().st_size]  # nothing of it is kept elsewhere


def test_the_listing_is_what_the_module_looks_for(module, server, folder, tmp_path):
    label = drawn(folder / "a.nii.gz", tmp_path / "label.nii.gz")
    module.client.save_label("a", str(label), tag="original", params={"params": {"label_names": {"front": 1}}})
    found = module.client.datastore()["objects"]
    assert found.keys() == {"a", "b 2", "ç"}
    assert found["a"]["labels"]["original"]["ext"] == ".nii.gz"
    assert found["a"]["labels"]["original"]["info"]["params"]["label_names"] == {"front": 1}
    assert found["b 2"]["labels"] == {}
    assert Path(module.client.download_label("a", "original")).stat().st_size
    assert httpx.get(f"{server.url}/datastore/").json() == {"total": 3, "completed": 0}  # a draft is not final
    for name, tag in (("b 2", "original"), ("a", "final"), ("../a", "original"), ("a", "../labels/original")):
        with pytest.raises(Refused) as refused:
            module.client.download_label(name, tag)
        assert refused.value.status == 404


def test_segments_that_overlap_keep_names_and_colours(module, folder, tmp_path):
    grid = medseg.read(folder / "a.nii.gz").geometry
    array = np.zeros(SHAPE, np.uint8)
    array[2:8, 3:9, 4:9], array[4:6, 4:6, 5:7] = 1, 2
    labels = (Label(value=1, name="whole", atoms=(1, 2), color=(10, 200, 30)), Label(value=2, name="core"))
    medseg.write(LabelMap(array, grid, labels), tmp_path / "drawn.seg.nrrd")
    module.client.save_label("a", str(drawn(folder / "a.nii.gz", tmp_path / "plain.nii.gz")))
    module.client.save_label("a", str(tmp_path / "drawn.seg.nrrd"))
    fetched = module.client.download_label("a", "final")
    assert fetched.endswith(".seg.nrrd")
    found = medseg.read_labels(fetched)
    assert found.label("whole").color == (10, 200, 30)
    assert all(np.array_equal(found.mask(name), LabelMap(array, grid, labels).mask(name)) for name in ("whole", "core"))
    assert sorted(path.name for path in (folder / "labels" / "final").iterdir()) == ["a.json", "a.seg.nrrd"]
    module.client.save_label("a", str(tmp_path / "plain.nii.gz"))
    assert module.client.download_label("a", "final").endswith(".nii.gz")


def test_labels_of_a_part_or_in_another_axis_order_are_laid_onto_the_scan(module, folder, tmp_path):
    scan = medseg.read(folder / "a.nii.gz").geometry
    array = np.zeros(SHAPE, np.uint8)
    array[5:9, 6:8, 7:12] = 3
    part = (slice(4, 10), slice(6, 9), slice(0, 13))
    cut = LabelMap(array[part], scan.cropped((4, 6, 0), (10, 9, 13)))  # 3D Slicer crops where it is told to
    order = scan.order_to("PIL")
    turned = LabelMap(np.ascontiguousarray(order.apply(array)), scan.reordered(order))
    for labels in (cut, turned):
        medseg.write(labels, tmp_path / "label.nii.gz")
        module.client.save_label("a", str(tmp_path / "label.nii.gz"))
        kept = medseg.read_labels(folder / "labels" / "final" / "a.nii.gz")
        assert np.array_equal(kept.array, array)
        assert kept.geometry.same_as(scan, tolerance=1e-4)


def test_a_volume_of_the_scene_joins_the_folder_before_its_labels(module, server, folder, tmp_path):
    volume = tmp_path / "volume.nii.gz"
    medseg.write(smooth_scan((12, 13, 14), seed=9), volume)
    module.load(volume, "Mine [2]")
    label = drawn(volume, tmp_path / "label.nii.gz")
    module.submit(label, ["front", "back"])
    assert np.array_equal(medseg.read(folder / "Mine [2].nii.gz").array, medseg.read(volume).array)
    assert module.client.info()["datastore"] == {"total": 4, "completed": 1}
    assert module.segment("tiny")[1] == ["front", "back"]  # by its name now
    again = Module(module.client)  # another day: the same volume is no conflict
    again.load(volume, "Mine [2]")
    again.submit(label, ["front", "back"])
    other = tmp_path / "other.nii.gz"
    medseg.write(smooth_scan((12, 13, 14), seed=10), other)
    again.load(other, "Mine [2]")
    with pytest.raises(Refused, match=r"Status: 409.*rename the volume"):
        again.submit(label, ["front", "back"])
    assert np.array_equal(medseg.read(folder / "Mine [2].nii.gz").array, medseg.read(volume).array)


@pytest.mark.parametrize(
    "name", ["../x", "/tmp/x", ".x", "x/y", "x\\y", "x\0y", "x\ny", " ", "-x", "a" * 150, "labels/../x"]
)
def test_no_name_of_a_volume_leads_out_of_the_folder(module, server, folder, name):
    def scans():  # all but those that the server keeps for a while
        walked = [each for each in os.walk(server.folder) if "XDG_CACHE_HOME" not in each[0]]
        return {Path(place, each) for place, _, names in walked for each in names if each.endswith(".nii.gz")}

    before = scans()
    with pytest.raises(Refused, match="Status: 400"):
        module.client.upload_image(str(server.scan), name)
    assert scans() == before


@pytest.mark.parametrize("image", ["../scans/a", "a.nii.gz", "/etc/passwd", "", "labels", "a\0", "*"])
def test_no_name_of_a_scan_is_a_path(module, server, folder, tmp_path, image):
    label = drawn(folder / "a.nii.gz", tmp_path / "label.nii.gz")
    for call in (lambda: module.client.save_label(image, str(label)), lambda: module.client.infer("tiny", image, {})):
        with pytest.raises(Refused, match="Status: 404"):
            call()
    answer = httpx.get(f"{server.url}/datastore/image", params={"image": image})
    assert answer.status_code == 404
    assert not (folder / "labels").exists()


@pytest.mark.parametrize("tag", ["../final", "..", ".", "a/b", "a\\b", "/tmp", "a b", "x" * 50, "a\0", "ä", "final\n"])
def test_no_tag_is_a_path(module, folder, tmp_path, tag):
    label = drawn(folder / "a.nii.gz", tmp_path / "label.nii.gz")
    with pytest.raises(Refused, match="Status: 400"):
        module.client.save_label("a", str(label), tag=tag)
    assert not (folder / "labels").exists()


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_label_map_of_the_scan_is_refused(module, server, folder, tmp_path, kind):
    path, grid = tmp_path / "label.nii.gz", medseg.read(folder / "a.nii.gz").geometry
    if kind == "a bomb":
        large = (1200, 1200, 1200)
        medseg.write(LabelMap(np.broadcast_to(np.uint8(0), large), Geometry(np.eye(4), large)), path)
    elif kind == "half a file":
        whole = drawn(folder / "a.nii.gz", path).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "colours":
        sitk.WriteImage(sitk.Image(4, 4, sitk.sitkVectorUInt8), str(path := tmp_path / "label.png"))
    elif kind == "fractions":
        medseg.write(Volume(np.full((1, *SHAPE), 0.5, np.float32), grid), path)
    elif kind == "another grid":
        medseg.write(LabelMap(np.ones(SHAPE, np.uint8), grid.cropped((1, 0, 0), (17, 17, 18))), path)
    else:
        path.write_bytes(HOSTILE[kind])
    with pytest.raises(Refused, match="Status: 422") as refused:
        module.client.save_label("a", str(path))
    assert not [word for word in (str(server.folder), "uploads", "Traceback") if word in str(refused.value)]
    assert not (folder / "labels").exists()
    assert module.client.info()["datastore"] == {"total": 3, "completed": 0}


@pytest.mark.parametrize("params", ['{"a": NaN}', '{"a": "\\ud800"}', "[" * 100 + "]" * 100, "{", "[" * 100_000])
def test_what_could_not_be_told_again_is_not_kept(module, server, folder, tmp_path, params):
    label = drawn(folder / "a.nii.gz", tmp_path / "label.nii.gz").read_bytes()
    answer = httpx.put(f"{server.url}/datastore/label?image=a", files={"label": label}, data={"params": params})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "PARAMS")
    assert module.client.datastore()["objects"]["a"]["labels"] == {}


def test_what_others_put_beside_the_labels_does_not_break_the_listing(module, folder, tmp_path):
    module.client.save_label("a", str(drawn(folder / "a.nii.gz", tmp_path / "label.nii.gz")))
    (folder / "labels" / "final" / "a.json").write_text("{broken")
    (folder / "labels" / "final" / "unknown.nii.gz").write_bytes(b"")
    (folder / "labels" / "readme.txt").write_text("mine")
    (folder / "notes.txt").write_text("mine")
    assert module.client.datastore()["objects"]["a"]["labels"] == {"final": {"ext": ".nii.gz", "info": {}}}
    assert module.client.info()["datastore"] == {"total": 3, "completed": 1}


def test_without_a_folder_there_is_nothing_to_label(connect, tmp_path):
    with served(tmp_path / "server") as server:
        client = connect(server.url)
        assert client.next_sample("first", {}) == {}
        client.upload_image(str(server.scan), "scan")
        for call in (client.datastore, lambda: client.save_label("scan", str(server.scan)),
                     lambda: client.download_label("scan", "final")):  # fmt: skip
            with pytest.raises(Refused, match="--datastore DIR"):
                call()
        with pytest.raises(Refused, match="404"):
            client.next_sample("random", {})

"""The sample scans are what their README says."""

import hashlib
import re

from conftest import SAMPLES

import medseg


def test_every_sample_is_listed_with_its_sum_and_nothing_else_is():
    listed = dict(re.findall(r"^([0-9a-f]{64})  (\S+)$", (SAMPLES / "README.md").read_text(), re.MULTILINE))
    listed = {name: digest for digest, name in listed.items()}
    found = {
        str(path.relative_to(SAMPLES)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in SAMPLES.rglob("*")
        if path.is_file()
        and path.suffix not in (".md", ".py", ".txt")
        and not re.search(r"_seg\.(nii\.gz|png|json)$", path.name)
    }
    assert found == listed


def test_the_samples_are_small():
    assert sum(path.stat().st_size for path in SAMPLES.rglob("*") if path.is_file()) < 10_000_000


def test_the_crop_lies_in_the_head_it_was_cut_from():
    head, crop = medseg.read(SAMPLES / "t1_head.nii.gz"), medseg.read(SAMPLES / "t1_hippocampus.nii.gz")
    start = head.geometry.to_index(crop.geometry.origin).round().astype(int)
    i, j, k = start
    assert (head.array[0, i : i + 40, j : j + 56, k : k + 40] == crop.array[0]).all()
    centre = crop.geometry.to_world([19.5, 27.5, 19.5])
    assert centre[0] < -20  # mm: on the left


def test_the_tumour_mask_lies_on_its_scan():
    scan, mask = medseg.read(SAMPLES / "mr_tumour.nrrd"), medseg.read_labels(SAMPLES / "mr_tumour_mask.nrrd")
    assert scan.geometry.same_as(mask.geometry)
    assert scan.geometry.orientation == "LAS"
    inside = scan.array[0][mask.array == 1]
    assert inside.mean() > scan.array.mean() * 1.5  # it enhances


def test_every_sample_says_its_licence():
    text = (SAMPLES / "README.md").read_text()
    for name in re.findall(r"`(licences/[^`]+)`", text):
        assert (SAMPLES / name).read_text()
    assert "McConnell" in (SAMPLES / "licences" / "mricron-data.txt").read_text()

"""Layouts: whatever folder, listing or table is given, the same cases come out, and what is wrong has a name."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import medseg
from medseg.errors import UsageError
from medseg.geometry import Geometry
from medseg.training.layouts import find_dataset, read_decathlon
from medseg.volume import Volume

BOX = Geometry(np.eye(4), (4, 5, 6))
PICTURE = Geometry(np.eye(4), (4, 5, 1), physical=False)


def put(folder: Path, *names: str, value=1, channels=1) -> None:
    """Write a scan of constant channels value, value + 1, ... under each name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = PICTURE.shape if path.suffix == ".png" else BOX.shape
        array = np.stack([np.full(shape, value + n, np.uint8) for n in range(channels)])
        medseg.write(Volume(array, PICTURE if path.suffix == ".png" else BOX), path)


def table(folder: Path, text: str, name="cases.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def listing(folder: Path, **record) -> Path:
    (folder / "dataset.json").write_text(json.dumps(record))
    return folder


def shown(dataset) -> dict:
    """Return the files of each case, by name: images and reference."""
    return {
        case.name: ([file.path.name for file in case.images], case.reference.path.name, case.group)
        for case in dataset.cases
    }


def said(dataset) -> list:
    return sorted((finding.severity, finding.code, finding.case) for finding in dataset.findings)


# folders


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images", "labels"),
        ("Images", "Masks"),
        ("imagesTr", "labelsTr"),
        ("imgs", "Segmentations"),
        ("train_images", "train_labels"),
        ("train/images", "train/annotations"),
        ("images/train", "labels/train"),
        ("MyData/images", "MyData/ground truth"),
    ],
)
def test_images_and_labels_pair_by_name(tmp_path, images, labels):
    put(tmp_path, f"{images}/b.nii.gz", f"{images}/a.nii.gz", f"{labels}/a.nii.gz", f"{labels}/b.nii.gz")
    dataset = find_dataset(tmp_path)
    assert shown(dataset) == {"a": (["a.nii.gz"], "a.nii.gz", ""), "b": (["b.nii.gz"], "b.nii.gz", "")}
    assert [case.images[0].path.parent for case in dataset.cases] == [tmp_path / images] * 2
    assert [case.reference.path.parent for case in dataset.cases] == [tmp_path / labels] * 2
    assert (dataset.name, dataset.channels, dataset.labels, dataset.ignore) == (tmp_path.name, (), (), None)
    assert not dataset.findings


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("x.nii.gz", "x_seg.nii.gz"),
        ("x.nii", "x-Seg.nii.gz"),
        ("x.nrrd", "x.seg.nrrd"),
        ("x.mha", "x_labels.nrrd"),
        ("x_0000.nii.gz", "x.nii.gz"),
        ("x_img.nii.gz", "x_mask.nii.gz"),
        ("img_x.png", "mask_x.png"),
        ("x_t1.nii.gz", "x_gt.nii.gz"),
        ("volume-x.nii", "segmentation-x.nii"),
    ],
)
def test_words_that_say_what_a_file_is_do_not_count_in_its_name(tmp_path, image, label):
    put(tmp_path / "images", image)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / label).write_bytes((tmp_path / "images" / image).read_bytes())
    assert shown(find_dataset(tmp_path)) == {"x": ([image], label, "")}


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("x.nii.gz", "x_seg.nii.gz"),
        ("x.mha", "x_label.mha"),
        ("x.nii.gz", "x-labels.nii.gz"),
        ("x_img.nii.gz", "x_seg.nii.gz"),
        ("x_0000.nii.gz", "x_gt.nii.gz"),
        ("x.png", "x_mask.png"),
        ("volume-x.nii", "segmentation-x.nii"),
    ],
)
def test_a_label_lies_beside_its_image(tmp_path, image, label):
    put(tmp_path, image, label, image.replace("x", "y"), label.replace("x", "y"))
    assert shown(find_dataset(tmp_path)) == {
        "x": ([image], label, ""),
        "y": ([image.replace("x", "y")], label.replace("x", "y"), ""),
    }


def test_a_year_in_a_name_is_no_channel(tmp_path):
    put(tmp_path, "images/p_2019.nii.gz", "images/p_2020.nii.gz", "labels/p_2019.nii.gz", "labels/p_2020.nii.gz")
    assert list(shown(find_dataset(tmp_path))) == ["p_2019", "p_2020"]


def test_numbered_channels_stand_in_their_order(tmp_path):
    for case in "ab":
        put(tmp_path, f"imagesTr/{case}_0001.nii.gz", value=1)
        put(tmp_path, f"imagesTr/{case}_0000.nii.gz", f"labelsTr/{case}.nii.gz", value=0)
    dataset = find_dataset(tmp_path)
    assert shown(dataset)["b"] == (["b_0000.nii.gz", "b_0001.nii.gz"], "b.nii.gz", "")
    assert dataset.channels == ()
    assert dataset.cases[0].scan().array[:, 0, 0, 0].tolist() == [0, 1]


@pytest.mark.parametrize(
    "form", ["{c}/t1{e} {c}/flair{e} {c}/seg{e}", "{c}/{c}_t1{e} {c}/{c}_flair{e} {c}/{c}_seg{e}",
             "{c}/P-7_t1{e} {c}/P-7_flair{e} {c}/P-7_seg{e}", "{c}_t1{e} {c}_flair{e} {c}_seg{e}",
             "images/{c}_t1{e} images/{c}_flair{e} labels/{c}{e}", "images/{c}/t1{e} images/{c}/flair{e} labels/{c}{e}",
             "train/{c}/t1{e} train/{c}/flair{e} train/{c}/t1_seg{e}"],
)  # fmt: skip
def test_channels_are_what_the_names_in_a_case_differ_in(tmp_path, form):
    for case in ("BraTS_002", "BraTS_001"):
        put(tmp_path, *form.format(c=case, e=".nii.gz").split())
    dataset = find_dataset(tmp_path)
    assert dataset.channels == ("flair", "t1")
    assert [case.name for case in dataset.cases] == ["BraTS_001", "BraTS_002"]
    for case in dataset.cases:
        flair, t1 = (file.path.name.removesuffix(".nii.gz") for file in case.images)
        assert flair.endswith("flair")
        assert t1.endswith("t1")
    assert not dataset.findings


def test_a_folder_for_each_case_may_hold_one_image_of_any_name(tmp_path):
    put(tmp_path, "p1/imaging.nii.gz", "p1/segmentation.nii.gz", "p2/imaging.nii.gz", "p2/segmentation.nii.gz")
    dataset = find_dataset(tmp_path)
    assert shown(dataset)["p2"] == (["imaging.nii.gz"], "segmentation.nii.gz", "")
    assert dataset.channels == ()
    shutil.move(tmp_path / "p2" / "imaging.nii.gz", tmp_path / "p2" / "CT_2019.nii.gz")
    dataset = find_dataset(tmp_path)
    assert shown(dataset)["p2"] == (["CT_2019.nii.gz"], "segmentation.nii.gz", "")
    assert said(dataset) == [("warning", "NAMES", "p1")]


def test_the_volumes_of_a_file_are_channels(tmp_path):
    put(tmp_path, "images/a.nii.gz", "images/b.nii", channels=3, value=7)
    put(tmp_path, "labels/a.nii.gz", "labels/b.nii.gz")
    case = find_dataset(tmp_path).cases[1]
    assert [file.volume for file in case.images] == [0, 1, 2]
    assert case.scan().array[:, 0, 0, 0].tolist() == [7, 8, 9]


@pytest.mark.parametrize(
    ("image", "label"),
    [("images/case01", "labels/case01.nii.gz"), ("case01", "case01/seg.nii.gz"), ("c", "c_seg.nii.gz")],
)
def test_a_dicom_series_is_an_image(tmp_path, image, label):
    series = sorted((Path(__file__).parent.parent / "sample_data" / "ct_dicom").iterdir())
    (tmp_path / image).mkdir(parents=True)
    for path in series[:2]:
        shutil.copy(path, tmp_path / image)
    put(tmp_path, label)
    (case,) = find_dataset(tmp_path).cases
    assert (case.name, case.images[0].path) == (Path(image).name, tmp_path / image)
    assert case.scan().geometry.shape[2] == 2


def test_what_has_no_partner_is_named_and_left_out(tmp_path):
    put(tmp_path, "images/a.nii.gz", "images/b.nii.gz", "images/e_0000.nii.gz", "labels/a.nii.gz", "labels/c.nii.gz")
    dataset = find_dataset(tmp_path)
    assert list(shown(dataset)) == ["a"]
    assert said(dataset) == [
        ("error", "NO_IMAGE", "labels/c.nii.gz"),
        ("error", "NO_LABEL", "images/b.nii.gz"),
        ("error", "NO_LABEL", "images/e_0000.nii.gz"),
    ]


def test_an_unlabelled_scan_is_no_channel_of_another_case(tmp_path):
    put(tmp_path, "a.nii.gz", "a_seg.nii.gz", "a_2.nii.gz", "b.nii.gz", "b_seg.nii.gz")
    dataset = find_dataset(tmp_path)
    assert shown(dataset)["a"] == (["a.nii.gz"], "a_seg.nii.gz", "")
    assert said(dataset) == [("error", "NO_LABEL", f"{tmp_path.name}/a_2.nii.gz")]


def test_a_missing_channel_is_named(tmp_path):
    for case in "abc":
        put(tmp_path, f"{case}/t1.nii.gz", f"{case}/flair.nii.gz", f"{case}/seg.nii.gz")
    (tmp_path / "b" / "flair.nii.gz").unlink()
    put(tmp_path, "c/t1_before.nii.gz")
    dataset = find_dataset(tmp_path)
    assert list(shown(dataset)) == ["a", "c"]
    assert said(dataset) == [("error", "MISSING_CHANNEL", "b"), ("warning", "EXTRA_FILE", "c/t1_before.nii.gz")]
    assert "flair" in dataset.findings[0].detail


def test_a_case_with_fewer_volumes_is_named(tmp_path):
    put(tmp_path, "images/a.nii.gz", "images/b.nii.gz", channels=2)
    put(tmp_path, "images/c.nii.gz", "labels/a.nii.gz", "labels/b.nii.gz", "labels/c.nii.gz")
    dataset = find_dataset(tmp_path)
    assert list(shown(dataset)) == ["a", "b"]
    assert said(dataset) == [("error", "MISSING_CHANNEL", "c")]


@pytest.mark.parametrize("twin", ["images/a.nrrd", "labels/a.nrrd", "labels/a.mha"])
def test_two_files_of_one_name_are_ambiguous(tmp_path, twin):
    put(tmp_path, "images/a.nii.gz", "labels/a.nii.gz", "images/b.nii.gz", "labels/b.nii.gz", twin)
    dataset = find_dataset(tmp_path)
    assert list(shown(dataset)) == ["b"]
    assert said(dataset) == [("error", "AMBIGUOUS", "a")]
    assert Path(twin).name in dataset.findings[0].detail


def test_what_macos_and_previews_leave_behind_is_passed_over(tmp_path):
    put(tmp_path, "images/a.nii.gz", "labels/a.nii.gz", "images/a.png")
    for name in ("images/._a.nii.gz", "labels/._a.nii.gz", "__MACOSX/images/b.nii.gz", ".cache/b.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"\0\5\26\7")
    dataset = find_dataset(tmp_path)
    assert list(shown(dataset)) == ["a"]
    assert said(dataset) == [("warning", "UNUSED", "images/a.png")]


def test_folders_of_scans_that_are_not_used_are_named(tmp_path):
    put(tmp_path, "images/a.nii.gz", "labels/a.nii.gz", "imagesTs/t.nii.gz", "more/b.nii.gz", "val/images/c.nii.gz")
    (tmp_path / "notes").mkdir()
    assert said(find_dataset(tmp_path)) == [("warning", "UNUSED", "more"), ("warning", "UNUSED", "val")]


def test_two_folders_of_labels_are_not_chosen_from(tmp_path):
    put(tmp_path, "images/a.nii.gz", "labels/a.nii.gz", "masks/a.nii.gz")
    with pytest.raises(UsageError, match="labels and masks"):
        find_dataset(tmp_path)


# dataset.json


def test_the_hippocampus_of_the_decathlon_is_found(data):
    for given in (data / "hippocampus", data / "hippocampus" / "dataset.json"):
        dataset = find_dataset(given)
        assert len(dataset.cases) == 208
        assert [(label.value, label.name, label.atoms) for label in dataset.labels] == [
            (1, "Anterior", (1,)),
            (2, "Posterior", (2,)),
        ]
        assert (dataset.name, dataset.channels, dataset.findings) == ("hippocampus", ("MRI",), ())
    assert read_decathlon(data / "hippocampus") == list(dataset.cases)
    assert dataset.cases[0].labels(dataset.labels).counts()["Posterior"] > 0


def test_a_decathlon_image_has_a_volume_for_each_modality(tmp_path):
    put(tmp_path, "imagesTr/b.nii.gz", "imagesTr/a.nii.gz", channels=2, value=5)
    put(tmp_path, "labelsTr/a.nii.gz", "labelsTr/b.nii.gz")
    entries = [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in ("b", "a")]
    entries.append({"image": "./imagesTr/._a.nii.gz", "label": "./labelsTr/._a.nii.gz"})
    labels = {"0": "background", "10": "fat", "2": "bone"}
    listing(tmp_path, modality={"0": "T2", "1": "ADC"}, labels=labels, numTraining=2, training=entries)
    dataset = find_dataset(tmp_path)
    assert [case.name for case in dataset.cases] == ["a", "b"]
    assert [file.volume for file in dataset.cases[0].images] == [0, 1]
    assert (dataset.channels, dataset.findings) == (("T2", "ADC"), ())
    assert [(label.value, label.name) for label in dataset.labels] == [(2, "bone"), (10, "fat")]
    assert read_decathlon(tmp_path)[0].scan().array[:, 0, 0, 0].tolist() == [5, 6]


def test_training_may_be_a_list_of_paths(tmp_path):
    put(tmp_path, "imagesTr/a.nii.gz", "imagesTr/b.nii.gz", "labelsTr/a.nii.gz")
    listing(tmp_path, labels={"x": 1}, training=["./imagesTr/a.nii.gz", "./imagesTr/b.nii.gz"])
    dataset = find_dataset(tmp_path)
    assert shown(dataset) == {"a": (["a.nii.gz"], "a.nii.gz", "")}
    assert said(dataset) == [("error", "NO_LABEL", "imagesTr/b.nii.gz")]


def test_files_that_are_listed_and_not_there_are_named(tmp_path):
    put(tmp_path, "imagesTr/a.nii.gz", "imagesTr/b.nii.gz", "labelsTr/a.nii.gz")
    entries = [{"image": f"imagesTr/{case}.nii.gz", "label": f"labelsTr/{case}.nii.gz"} for case in "abc"]
    dataset = find_dataset(listing(tmp_path, training=entries, numTraining=4))
    assert list(shown(dataset)) == ["a"]
    assert said(dataset) == [
        ("error", "MISSING_FILE", "b"),
        ("error", "MISSING_FILE", "c"),
        ("warning", "COUNT", "dataset.json"),
    ]
    with pytest.raises(UsageError, match=r"dataset\.json.*labelsTr/b\.nii\.gz is not there"):
        read_decathlon(tmp_path)


def test_a_listing_of_cases_finds_their_channel_files(tmp_path):
    put(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz")
    entries = [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]  # as nnU-Net wrote them before v2
    dataset = find_dataset(listing(tmp_path, modality={"0": "T1", "1": "T2"}, training=entries))
    assert shown(dataset) == {"a": (["a_0000.nii.gz", "a_0001.nii.gz"], "a.nii.gz", "")}


def test_an_nnunet_folder_has_regions_and_a_value_to_ignore(tmp_path):
    for case in ("a", "b"):
        put(tmp_path, *(f"imagesTr/{case}_000{n}.nrrd" for n in range(2)), f"labelsTr/{case}.nrrd")
    put(tmp_path, "imagesTs/t_0000.nrrd", "imagesTr/c_0000.nrrd", "imagesTr/d_0001.nrrd", "labelsTr/d.nrrd")
    listing(
        tmp_path,
        channel_names={"0": "T1", "1": "FLAIR"},
        labels={"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4},
        regions_class_order=[1, 2, 3],
        numTraining=4,
        file_ending=".nrrd",
    )
    dataset = find_dataset(tmp_path)
    assert shown(dataset)["b"] == (["b_0000.nrrd", "b_0001.nrrd"], "b.nrrd", "")
    assert (dataset.channels, dataset.ignore) == (("T1", "FLAIR"), 4)
    assert [(label.value, label.name, label.atoms) for label in dataset.labels] == [
        (1, "whole", (1, 2, 3)),
        (2, "core", (2, 3)),
        (3, "enhancing", (3,)),
    ]
    assert said(dataset) == [("error", "MISSING_CHANNEL", "d"), ("error", "NO_LABEL", "imagesTr/c_0000.nrrd")]


@pytest.mark.parametrize("order", [None, [1, 1, 2], [1, 2], [4, 1, 2], "no", [0, 1, 2]])
def test_regions_without_a_usable_order_take_free_values(tmp_path, order):
    put(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    labels = {"whole": [1, 2, 3], "core": [3, 2], "enhancing": [3], "ignore": 4}
    dataset = find_dataset(listing(tmp_path, labels=labels, regions_class_order=order, file_ending=".nii.gz"))
    assert {label.name: (label.value, label.atoms) for label in dataset.labels} == {
        "whole": (1, (1, 2, 3)),
        "core": (2, (3, 2)),
        "enhancing": (3, (3,)),
    }


def test_an_order_of_regions_names_their_values(tmp_path):
    put(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    labels = {"background": 0, "kidney": [1, 2, 3], "mass": [2, 3], "tumour": 2}
    dataset = find_dataset(listing(tmp_path, labels=labels, regions_class_order=[1, 3, 2]))
    assert [(label.name, label.value) for label in dataset.labels] == [("kidney", 1), ("tumour", 2), ("mass", 3)]


def test_a_colour_picture_holds_the_channels_that_are_named(tmp_path):
    put(tmp_path, "imagesTr/a_0000.png", channels=3)
    put(tmp_path, "labelsTr/a.png")
    labels, names = {"background": 0, "road": 1}, dict.fromkeys("012", "noNorm")
    dataset = find_dataset(listing(tmp_path, channel_names=names, labels=labels, file_ending=".png"))
    assert shown(dataset) == {"a": (["a_0000.png"], "a.png", "")}
    assert dataset.channels == ("noNorm_0", "noNorm_1", "noNorm_2")
    assert len(dataset.cases[0].scan().array) == 3


def test_cases_of_an_nnunet_listing_lie_anywhere(tmp_path):
    put(tmp_path, "scans/one.nii.gz", "scans/two.nii.gz", "truth/drawn.nii.gz")
    (tmp_path / "raw").mkdir()
    cases = {
        "p1": {"images": ["../scans/one.nii.gz", "../scans/two.nii.gz"], "label": str(tmp_path / "truth/drawn.nii.gz")}
    }
    dataset = find_dataset(
        listing(tmp_path / "raw", channel_names={"0": "a", "1": "b"}, labels={"x": 1}, dataset=cases)
    )
    assert shown(dataset) == {"p1": (["one.nii.gz", "two.nii.gz"], "drawn.nii.gz", "")}
    assert ".." not in dataset.cases[0].images[0].path.parts
    assert said(dataset) == [("warning", "OUTSIDE", "dataset.json")]


def test_a_listing_of_labels_alone_names_them_in_any_layout(tmp_path):
    put(tmp_path, "p1/t1.nii.gz", "p1/flair.nii.gz", "p1/seg.nii.gz")
    dataset = find_dataset(listing(tmp_path, channels=["T1", "FLAIR"], labels={"lesion": 2}))
    assert [file.path.name for file in dataset.cases[0].images] == ["t1.nii.gz", "flair.nii.gz"]
    assert (dataset.channels, dataset.labels[0].atoms) == (("T1", "FLAIR"), (2,))
    with pytest.raises(UsageError, match="says the channels CT, PET, but its files are named flair, t1"):
        find_dataset(listing(tmp_path, channels=["CT", "PET"], labels={"lesion": 2}))


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ({"background": 0, "liver": 1.5}, "'liver' has the value '1.5', which is no whole number"),
        ({"background": 0, "liver": True}, "'liver' has the value 'True'"),
        ({"background": 0, "liver": "one"}, "'liver' has the value 'one'"),
        ({"background": 0, "liver": -1}, "'liver' has the value -1"),
        ({"background": 0, "liver": 70000}, "'liver' has the value 70000"),
        ({"background": 0, "liver": 1, "spleen": 1}, "'liver' and 'spleen' share the value 1"),
        ({"whole": [1, 2], "all": [2, 1]}, "'whole' and 'all' share the value 1, 2"),
        ({"liver": 0, "spleen": 1}, "'liver' has the value 0"),
        ({"background": 0, "whole": [0, 1]}, "'whole' has the value 0"),
        ({"background": 0, "whole": []}, "region 'whole' is of no value"),
        ({"liver": 1, "ignore": [2, 3]}, "to be ignored are 2, 3"),
        ({"liver": [1, 2], "ignore": 2}, "'liver' has the value 2, which is to be ignored"),
        ({"0": "background", "x": "liver"}, "'liver' has the value 'x'"),
        ({"0": "background", "-1": "liver"}, "'liver' has the value -1"),
        ({"0": "background", "1": "liver", "2": "liver"}, "two labels are named 'liver'"),
        ({"0": "background", "1": " "}, "the label of value 1 has no name"),
        (["background", "liver"], "labels are"),
    ],
)
def test_labels_that_cannot_be_are_named(tmp_path, labels, found):
    put(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    with pytest.raises(UsageError) as caught:
        find_dataset(listing(tmp_path, labels=labels, file_ending=".nii.gz"))
    assert found in caught.value.problem
    assert "dataset.json" in caught.value.problem


@pytest.mark.parametrize(
    "channels", [{"0": "a", "2": "b"}, {"T1": 0}, {"0": 1}, ["a", ""], "MRI", 3, {"0": "a", "1": "a", "2": "a_1"}]
)
def test_channels_that_cannot_be_are_refused(tmp_path, channels):
    put(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    with pytest.raises(UsageError, match="channels are"):
        find_dataset(listing(tmp_path, channel_names=channels))


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[", "3", '"x"', "[" * 100_000, '{"labels": {"liver": 1, "liver": 2}}', '{"training": 7}',
        '{"training": [7]}', '{"training": [{"image": 7, "label": "a"}]}', '{"training": [{"image": "a"}]}',
        '{"training": [{"label": "a"}]}', '{"training": [{"image": ["a", null], "label": ["b"]}]}',
        '{"training": [{"image": "a\\u0000", "label": "b"}]}', '{"file_ending": 3}', '{"file_ending": ".b2nd"}', "{}",
        '{"dataset": {"a": 1}}', '{"dataset": {"a": {"images": ["x.nii.gz"]}}}', '{"dataset": {"a": {"images": 3}}}',
        '{"training": [{"image": "' + "a" * 5000 + '", "label": "b"}]}', '{"training": ["nothing.nii.gz"]}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["dataset.json", "cases.json"])
def test_a_damaged_listing_is_refused_in_one_line(tmp_path, text, name):
    table(tmp_path, text, name)
    for given in (tmp_path, tmp_path / name) if name == "dataset.json" else (tmp_path / name,):
        with pytest.raises(UsageError) as caught:
            find_dataset(given)
        assert str(tmp_path) in caught.value.problem
        assert caught.value.hint


# tables


@pytest.mark.parametrize(
    "text",
    [
        "image,label,patient\nx/a.nii.gz,y/a.nii.gz,p1\nx/b.nii.gz,y/b.nii.gz,p1\n",
        "\ufeffImage;Label;Group\r\nx/a.nii.gz;y/a.nii.gz;p1\r\n\r\nx/b.nii.gz;y/b.nii.gz;p1\r\n;;\r\n",
        'image_path\tMask Path\tsubject\tage\n"x/a.nii.gz"\t../{here}/y/a.nii.gz\tp1\t54\nx/b.nii.gz\ty/b.nii.gz\tp1\n',
    ],
)
def test_a_table_names_images_labels_and_groups(tmp_path, text):
    put(tmp_path, "x/a.nii.gz", "x/b.nii.gz", "y/a.nii.gz", "y/b.nii.gz")
    dataset = find_dataset(table(tmp_path, text.replace("{here}", tmp_path.name)))
    assert shown(dataset) == {"a": (["a.nii.gz"], "a.nii.gz", "p1"), "b": (["b.nii.gz"], "b.nii.gz", "p1")}
    assert (dataset.name, dataset.channels, dataset.findings) == ("cases", (), ())


def test_a_column_that_names_scans_is_a_channel(tmp_path):
    put(tmp_path, "p1/t1.nii.gz", "p1/flair.nii.gz", "p1/seg.nii.gz", "p2/t1.nii.gz", "p2/seg.nii.gz")
    (tmp_path / "p1" / "report.txt").write_text("")
    text = "t1,site,flair,seg,report\np1/t1.nii.gz,p1,p1/flair.nii.gz,p1/seg.nii.gz,p1/report.txt\n"
    dataset = find_dataset(table(tmp_path, text + "p2/t1.nii.gz,p2,,p2/seg.nii.gz,\n"))
    assert shown(dataset) == {"p1": (["t1.nii.gz", "flair.nii.gz"], "seg.nii.gz", "")}
    assert dataset.channels == ("t1", "flair")
    assert said(dataset) == [("error", "MISSING_CHANNEL", "p2")]


def test_names_come_from_the_table_or_from_what_tells_cases_apart(tmp_path):
    files = [f"{folder}/{name}.nii.gz" for folder in ("p1", "p2") for name in ("s1", "s2", "seg")]
    put(tmp_path, *files)
    rows = [f"p{p}/s{s}.nii.gz,p{p}/seg.nii.gz" for p in (1, 2) for s in (1, 2)]
    names = list(shown(find_dataset(table(tmp_path, "image,label\n" + "\n".join(rows)))))
    assert names == ["p1_s1", "p1_s2", "p2_s1", "p2_s2"]
    own = list(
        shown(find_dataset(table(tmp_path, "image,label,case\n" + "\n".join(f"{r},{n}" for n, r in enumerate(rows)))))
    )
    assert own == ["0", "1", "2", "3"]
    with pytest.raises(UsageError, match="2 cases are named 's1'"):
        find_dataset(table(tmp_path, "image,label\n" + "\n".join([rows[0]] * 2)))


def test_cells_that_are_empty_or_name_nothing_are_found(tmp_path):
    put(tmp_path, "a.nii.gz", "b.nii.gz", "c.nii.gz")
    text = "case,image,label\nk,a.nii.gz,b.nii.gz\nl,a.nii.gz,\nm,,b.nii.gz\nn,d.nii.gz,b.nii.gz\no,,\n"
    dataset = find_dataset(table(tmp_path, text))
    assert list(shown(dataset)) == ["k"]
    assert said(dataset) == [
        ("error", "MISSING_FILE", "n"),
        ("error", "NO_IMAGE", "o"),
        ("error", "NO_IMAGE", f"{tmp_path.name}/b.nii.gz"),
        ("error", "NO_LABEL", f"{tmp_path.name}/a.nii.gz"),
    ]


def test_a_list_in_json_holds_what_a_table_holds(tmp_path):
    put(tmp_path, "a.nii.gz", "b.nii.gz", "a_l.nii.gz", "b_l.nii.gz")
    rows = [
        {"image": ["a.nii.gz", str(tmp_path / "b.nii.gz")], "label": "a_l.nii.gz", "group": "p1", "age": 60},
        {"image": ["b.nii.gz", "a.nii.gz"], "label": "b_l.nii.gz", "case": "second"},
    ]
    plain = find_dataset(table(tmp_path, json.dumps(rows), "cases.json"))
    named = {"channels": ["CT", "PET"], "labels": {"tumour": 1}, "ignore": 3, "training": rows}
    dataset = find_dataset(table(tmp_path, json.dumps(named), "cases.json"))
    assert shown(dataset) == shown(plain)
    assert shown(dataset) == {
        "a": (["a.nii.gz", "b.nii.gz"], "a_l.nii.gz", "p1"),
        "second": (["b.nii.gz", "a.nii.gz"], "b_l.nii.gz", ""),
    }
    assert (plain.channels, plain.labels, plain.ignore) == ((), (), None)
    assert (dataset.channels, dataset.labels[0].name, dataset.ignore) == (("CT", "PET"), "tumour", 3)
    assert not dataset.findings


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "has no rows"),
        ("image,label\n", "has no rows"),
        ("scan1.nii.gz,seg1.nii.gz\nscan2.nii.gz,seg2.nii.gz\n", "names images"),
        ("image,site\na.nii.gz,x\n", "names labels"),
        ("case,label\na,a.nii.gz\n", "names images"),
        ("image,label,mask\na.nii.gz,a.nii.gz,a.nii.gz\n", "label and mask"),
        ("image,label,label\na.nii.gz,a.nii.gz,a.nii.gz\n", "two columns are named 'label'"),
        ("image,label\na.nii.gz,a.nii.gz,a.nii.gz\n", "line 2 has 3 cells"),
        ('image,label\n"a.nii.gz,a.nii.gz\n', "is no table"),
        ("image,label\nzz.nii.gz,a.nii.gz\n", "zz.nii.gz is not there"),
        ("image,label,case\na.nii.gz,a.nii.gz,../../x\n", "'../../x' of a case cannot name a file"),
        ("image,label\n" + "a" * 200_000 + ",b\n", "is no table"),
        ("image,label\n\0,b\n", "is no"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path, text, found):
    put(tmp_path, "a.nii.gz")
    with pytest.raises(UsageError) as caught:
        find_dataset(table(tmp_path, text))
    assert found in caught.value.problem


@pytest.mark.parametrize("content", [b"\xff\xfei\0m\0a\0g\0e\0", b"\x89PNG\r\n\x1a\n", bytes(range(256))])
def test_a_table_that_is_no_text_is_refused(tmp_path, content):
    (tmp_path / "cases.csv").write_bytes(content)
    with pytest.raises(UsageError, match="CSV in UTF-8"):
        find_dataset(tmp_path / "cases.csv")


# what is none of these


@pytest.mark.parametrize(
    "files",
    [
        [], ["a.nii.gz"], ["a_seg.nii.gz"], ["a.nii.gz", "b_seg.nii.gz"], ["images/a.nii.gz"], ["labels/a.nii.gz"],
        ["images/a.nii.gz", "labels/b.nii.gz"], ["a/x.nii.gz", "b/x.nii.gz"], ["ct/a.nii.gz", "truth/a.nii.gz"],
    ],
)  # fmt: skip
def test_a_folder_without_a_pair_is_refused_with_what_was_seen(tmp_path, files):
    put(tmp_path, *files)
    with pytest.raises(UsageError) as caught:
        find_dataset(tmp_path)
    assert str(tmp_path) in caught.value.problem
    assert "images/ and labels/" in caught.value.hint
    assert "columns image and label" in caught.value.hint
    assert not files or Path(files[0]).parts[0] in caught.value.problem


def test_a_folder_of_images_without_one_scan_is_refused(tmp_path):
    (tmp_path / "images").mkdir()
    put(tmp_path, "labels/a.nii.gz")
    with pytest.raises(UsageError, match="images: holds no scan"):
        find_dataset(tmp_path)


def test_files_of_other_kinds_and_wrong_paths_are_refused(tmp_path):
    put(tmp_path, "a.nii.gz")
    table(tmp_path, "text", "notes.md")
    for name, found in (("a.nii.gz", "no folder, JSON or CSV"), ("notes.md", "no folder"), ("zz", "no such file")):
        with pytest.raises(UsageError, match=found):
            find_dataset(tmp_path / name)


def test_a_damaged_scan_is_left_to_whoever_opens_it(tmp_path):
    put(tmp_path, "images/a.nii.gz", "images/b.nii.gz", channels=2)
    put(tmp_path, "labels/a.nii.gz", "labels/b.nii.gz")
    whole = (tmp_path / "images" / "b.nii.gz").read_bytes()
    for damage in (b"", whole[:40], b"no scan"):
        (tmp_path / "images" / "b.nii.gz").write_bytes(damage)
        dataset = find_dataset(tmp_path)
        assert [len(case.images) for case in dataset.cases] == [2, 1]
        assert not dataset.findings


def test_no_voxel_is_read(tmp_path):
    put(tmp_path, "images/a.nii", channels=2)
    put(tmp_path, "labels/a.nii.gz")
    path = tmp_path / "images" / "a.nii"
    path.write_bytes(path.read_bytes()[:352])  # the header alone
    assert len(find_dataset(tmp_path).cases[0].images) == 2

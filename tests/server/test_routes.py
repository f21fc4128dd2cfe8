"""The routes of the server, asked as a program would ask them."""

import io
import json
import time
import zipfile

import httpx
import numpy as np
import pytest
from conftest import smooth_scan
from phantoms import body, series, store
from serving import served

import medseg
from medseg import Predictor


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with served(tmp_path_factory.mktemp("server")) as one:
        yield one


@pytest.fixture
def ask(server):
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client


@pytest.fixture
def scan(server):
    return {"file": ("scan.nii.gz", server.scan.read_bytes())}


@pytest.fixture(scope="module")
def expected(server):
    return Predictor.load(server.folder / "tiny.safetensors", device="cpu")(medseg.read(server.scan)).labels


@pytest.fixture(scope="module")
def dicom(tmp_path_factory):
    """A series, as files and as a zip archive."""
    noise = np.random.default_rng(0).integers(-200, 200, (16, 16, 16))
    folder = store(series((body((16, 16, 16)) + noise).astype(np.int16)), tmp_path_factory.mktemp("dicom") / "series")
    files = sorted(folder.iterdir())
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, file.name)
    return [file.read_bytes() for file in files], packed.getvalue()


def labels_in(content: bytes, folder, name: str = "answer.nii.gz"):
    (folder / name).write_bytes(content)
    return medseg.read_labels(folder / name)


def wait(ask, job: str) -> dict:
    """Return a job when it has ended."""
    until = time.monotonic() + 120
    while (told := ask.get(f"/jobs/{job}").json())["state"] in {"waiting", "running"}:
        assert time.monotonic() < until
        time.sleep(0.05)
    return told


def test_a_scan_comes_back_as_the_label_map_that_predict_gives(ask, scan, expected, tmp_path):
    answer = ask.post("/predict", files=scan)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-medseg-verdict"] in {"ok", "check", "refuse"}
    assert answer.headers["content-disposition"] == 'attachment; filename="segmentation.nii.gz"'
    labels = labels_in(answer.content, tmp_path)
    assert (labels.array == expected.array).all()
    assert labels.geometry.same_as(expected.geometry, tolerance=0)


def test_a_bare_body_is_a_scan_too(ask, server, expected, tmp_path):
    answer = ask.post("/predict?format=seg.nrrd", content=server.scan.read_bytes())
    labels = labels_in(answer.content, tmp_path, "answer.seg.nrrd")
    assert (labels.mask("front") == expected.mask("front")).all()


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nii"])
def test_other_formats_are_told_by_content(ask, server, suffix, expected, tmp_path):
    medseg.write(medseg.read(server.scan), tmp_path / f"scan{suffix}")
    answer = ask.post("/predict", files={"file": ("any name", (tmp_path / f"scan{suffix}").read_bytes())})
    assert (labels_in(answer.content, tmp_path).array == expected.array).all()


def test_the_report_comes_as_json_and_names_no_file(ask, scan, expected):
    report = ask.post("/predict?format=json", files=scan).json()
    assert report["scan"]["path"] == "scan"
    assert {label["name"]: label["voxels"] for label in report["labels"]} == expected.counts()
    assert str(ask.base_url) not in json.dumps(report)


def test_several_formats_come_as_a_zip_archive(ask, scan):
    answer = ask.post("/predict?format=nifti,seg.nrrd,json", files=scan)
    names = zipfile.ZipFile(io.BytesIO(answer.content)).namelist()
    assert names == [f"segmentation{suffix}" for suffix in (".nii.gz", ".seg.nrrd", ".png", ".json")]
    answer = ask.post("/predict?format=json,nifti", files=scan)
    assert zipfile.ZipFile(io.BytesIO(answer.content)).namelist() == ["segmentation.nii.gz", "segmentation.json"]


def test_zipped_dicom_gives_seg(ask, dicom):
    answer = ask.post("/predict?format=dicom-seg", files={"file": ("study.zip", dicom[1])})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/dicom"
    assert answer.content[128:132] == b"DICM"


def test_slices_of_dicom_may_come_as_parts_of_one_name(ask, dicom, tmp_path):
    parts = [("file", (f"{number}.dcm", content)) for number, content in enumerate(dicom[0])]
    one = ask.post("/predict", files=parts)
    other = ask.post("/predict", files={"file": ("study.zip", dicom[1])})
    assert one.status_code == 200, one.text
    assert (labels_in(one.content, tmp_path).array == labels_in(other.content, tmp_path).array).all()


def test_dicom_results_of_a_nifti_scan_are_left_out_or_refused(ask, scan):
    refused = ask.post("/predict?format=dicom-seg", files=scan)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "UsageError")
    told = wait(ask, ask.post("/predict?wait=false&format=nifti,dicom-seg", files=scan).json()["job"])
    assert set(told["results"]) == {"nifti", "picture", "report"}


def test_a_job_is_watched_from_queue_to_result(ask, scan, expected, tmp_path):
    begun = ask.post("/predict?wait=false&format=nifti,seg.nrrd", files=scan)
    assert begun.status_code == 202
    assert begun.headers["location"] == f"/jobs/{begun.json()['job']}"
    events = ask.get(f"{begun.headers['location']}/events").text.strip().split("\n\n")
    told = [json.loads(event.partition("data: ")[2]) for event in events]
    assert [each["fraction"] for each in told] == sorted(each["fraction"] for each in told)
    assert told[-1]["state"] == "done"
    assert events[-1].startswith("event: end\n")
    results = told[-1]["results"]
    assert set(results) == {"nifti", "seg.nrrd", "picture", "report"}
    assert (labels_in(ask.get(results["nifti"]).content, tmp_path).array == expected.array).all()
    assert ask.get(results["report"]).json()["labels"] == told[-1]["report"]["labels"]
    assert ask.delete(begun.headers["location"]).status_code == 204
    assert ask.get(begun.headers["location"]).status_code == 404


def test_planes_are_drawn_with_the_labels_that_are_not_hidden(ask, scan):
    from PIL import Image

    job = ask.post("/predict?wait=false", files=scan).json()["job"]
    assert wait(ask, job)["state"] == "done"
    about = ask.get(f"/jobs/{job}/planes").json()
    assert [view["view"] for view in about["views"]] == ["axial", "coronal", "sagittal"]
    first = about["views"][0]
    place = f"/jobs/{job}/planes/axial/{first['first']}"

    def colours(**params):
        picture = np.asarray(Image.open(io.BytesIO(ask.get(place, params=params).content)))
        assert max(picture.shape) == 512
        return np.ptp(picture, axis=-1) > 0

    front, back = colours(hidden=["back"]), colours(hidden=["front"])
    assert (front | back).any()
    assert not (front & back).any()
    assert ((front | back) == colours()).all()
    assert not colours(hidden=["front", "back"]).any()
    for wrong in (f"/jobs/{job}/planes/axial/999", f"/jobs/{job}/planes/oblique/0"):
        assert ask.get(wrong).json()["error"]["code"] == "USAGE"


def test_a_scan_whose_answer_was_taken_leaves_nothing_behind(server, ask, scan):
    before = {path for path in server.spool() if path.parent.parent.name in {"uploads", "results"}}
    assert ask.post("/predict", files=scan).status_code == 200
    until = time.monotonic() + 60
    while {path for path in server.spool() if path.parent.parent.name in {"uploads", "results"}} - before:
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("model=nobody", 404, "MODEL"),
        ("format=pdf", 400, "FORMAT"),
        ("wait=perhaps", 400, "PARAMETER"),
        ("volume=-1", 400, "PARAMETER"),
        ("colour=red", 400, "PARAMETER"),
        ("volume=3", 422, "SEVERAL_VOLUMES"),
        ("series=2", 422, "UsageError"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(ask, scan, query, status, code):
    answer = ask.post(f"/predict?{query}", files=scan)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert set(answer.json()["error"]) == {"code", "problem", "hint"}


def test_a_file_that_is_no_scan_is_refused_with_the_code_of_the_gate(server, ask):
    answer = ask.post("/predict", files={"file": ("secret name.nii.gz", b"hello, this is a letter " * 10)})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "NOT_A_SCAN")
    assert "secret" not in answer.text
    assert str(server.folder) not in answer.text


def test_models_and_health_are_told(ask):
    (model,) = ask.get("/models").json()
    assert (model["name"], model["channels"]) == ("tiny", ["t1"])
    assert [label["name"] for label in model["labels"]] == ["front", "back"]
    assert ask.get("/health").json()["status"] == "ok"


def test_the_routes_are_documented(ask):
    paths = ask.get("/openapi.json").json()["paths"]
    assert {"/health", "/models", "/predict", "/jobs/{job}", "/infer/{model}", "/info/"} <= set(paths)
    page = ask.get("/docs")
    assert page.status_code == 200
    assert "POST /predict" in page.text


def test_a_model_of_two_channels_takes_a_part_for_each(tmp_path):
    from conftest import random_bundle

    channels = [{"name": name, "intensity": {"kind": "zscore"}} for name in ("t1", "t2")]
    random_bundle(channels=channels).save(tmp_path / "two.safetensors")
    for name in ("t1", "t2"):
        medseg.write(smooth_scan((16, 16, 16), seed=len(name)), tmp_path / f"{name}.nii.gz")
    with (
        served(tmp_path, model=tmp_path / "two.safetensors") as server,
        httpx.Client(base_url=server.url, timeout=120) as ask,
    ):
        parts = {name: (f"{name}.nii.gz", (tmp_path / f"{name}.nii.gz").read_bytes()) for name in ("t1", "t2")}
        assert ask.post("/predict", files=parts).status_code == 200
        refused = ask.post("/predict", files={"file": parts["t1"]})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "FILES")
        assert "t1, t2" in refused.json()["error"]["hint"]

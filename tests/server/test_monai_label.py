"""The MONAI Label protocol, spoken by the client of MONAI Label itself; what its Slicer module needs, kept."""

import json
import os
import re
import shutil
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import CARD, random_bundle, rotation, smooth_scan
from monai_client import Module, Refused, connecting
from phantoms import OBLIQUE_AXES, body, series, store
from serving import served

import medseg
from medseg import Geometry, Predictor, Volume
from medseg.bundle import Bundle

TOKEN = "a-secret-of-some-length"
REGIONS = [{"value": 9, "name": "whole", "atoms": [4, 2]}, {"value": 5, "name": "core", "atoms": [2]}]
MODELS = {
    "tiny": {},
    "sparse": {"labels": [{"value": 7, "name": "front"}, {"value": 3, "name": "back"}]},
    "regions": {"labels": REGIONS},
    "pair": {"channels": [{"name": n, "intensity": {"kind": "zscore"}} for n in ("t1", "t2")]},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    for name, changes in MODELS.items():
        bundle, card = random_bundle(seed=4, **changes), CARD.model_copy(update={"name": name})
        Bundle.of(bundle.members, plan=bundle.plan, card=card).save(folder / f"{name}.safetensors")
    medseg.write(smooth_scan((16, 16, 16)), folder / "scan.nii.gz")
    first, *others = (folder / f"{name}.safetensors" for name in MODELS)
    with served(folder, *(word for file in others for word in ("-m", file)), model=first) as one:
        yield one


@pytest.fixture
def connect(tmp_path):
    with connecting(tmp_path) as start:
        yield start


@pytest.fixture
def client(connect, server):
    return connect(server.url)


def predicted(server, scan: Path, model: str):
    return Predictor.load(server.folder / f"{model}.safetensors", device="cpu")(medseg.read(scan)).labels


def imported(file: Path, labels: list[str]) -> dict[str, np.ndarray]:
    """Return the segments that the module makes: voxel value n is the nth label, as 3D Slicer imports it."""
    voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(file))).T
    assert voxels.max() <= len(labels)
    return {name: voxels == number for number, name in enumerate(labels, start=1)}


def oblique(path: Path, shape=(16, 18, 15)) -> Path:
    affine = np.eye(4)
    affine[:3, :3] = rotation(3) @ np.diag([0.9, 1.1, 2.5])
    affine[:3, 3] = (-31.4, 27.1, -8.25)
    medseg.write(Volume(smooth_scan(shape, seed=3).array, Geometry(affine, shape)), path)
    return path


def same_place(file: Path, scan: Path) -> bool:
    """Return whether ITK, with which 3D Slicer reads, sees both on one grid."""
    one, other = sitk.ReadImage(str(file)), sitk.ReadImage(str(scan))
    return one.GetSize() == other.GetSize() and all(
        np.allclose(getattr(one, get)(), getattr(other, get)(), rtol=0, atol=1e-6)
        for get in ("GetOrigin", "GetSpacing", "GetDirection")
    )


@pytest.fixture(scope="module")
def dicom(tmp_path_factory) -> Path:
    """A zip archive of an oblique series."""
    folder = tmp_path_factory.mktemp("dicom")
    noise = np.random.default_rng(0).integers(-200, 200, (16, 16, 16))
    voxels = (body((16, 16, 16)) + noise).astype(np.int16)
    store(series(voxels, orientation=OBLIQUE_AXES), folder / "series")
    return Path(shutil.make_archive(str(folder / "study"), "zip", folder / "series"))


# who asks, and what there is


def test_without_a_token_nobody_logs_in(client):
    assert client.auth_enabled() is False
    assert client.auth_token("user", "anything") == {"access_token": None, "token_type": None}
    assert client.auth_valid_token() is True


def test_the_module_finds_every_model_that_takes_one_scan(client):
    info = client.info()
    assert "config" not in info  # or the module asks to upgrade the server, and goes no further
    assert {name: model["type"] for name, model in info["models"].items()} == dict.fromkeys(
        ("tiny", "sparse", "regions"), "segmentation"
    )
    assert info["models"]["sparse"]["labels"] == {"front": 1, "back": 2}
    assert info["labels"] == ["front", "back", "whole", "core"]
    assert all(isinstance(model["description"], str) and model["config"] == {} for model in info["models"].values())
    assert info["trainers"] == info["strategies"] == info["train_stats"] == info["scoring"] == {}
    assert info["datastore"] == {"total": 0, "completed": 0}


def test_nothing_is_trained_and_the_module_knows(client):
    assert client.train_status(True) is False
    for call in (lambda: client.train_start("tiny", {}), client.train_stop, client.train_status):
        with pytest.raises(Refused, match=r"404.*nothing is trained here"):
            call()


@pytest.mark.parametrize("path", ["/batch/infer/tiny", "/model/tiny", "/scoring/", "/logs/", "/proxy/dicom/wado"])
def test_what_the_module_never_asks_for_is_not_there(server, path):
    assert httpx.get(server.url + path).status_code == 404


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server with a token, and HTTPS by a certificate that nobody signed."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "token").write_text(TOKEN)
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    subprocess.run(made, check=True, capture_output=True)
    places = ["--token-file", folder / "token", "--tls-certificate", folder / "cert.pem", "--tls-key"]
    with served(folder, *places, folder / "key.pem") as one:
        yield one


def test_only_the_right_password_lets_the_module_in(connect, guarded):
    client = connect(guarded.url)
    assert client.auth_enabled() is True
    assert client.auth_valid_token() is False
    with pytest.raises(Refused) as refused:
        client.auth_token("user", TOKEN[:-1])
    assert refused.value.status == 401
    for call in (
        client.info,
        lambda: client.get_session("x"),
        client.datastore,
        lambda: client.next_sample("first", {}),
    ):
        with pytest.raises(Refused) as refused:
            call()
        assert refused.value.status == 401
    module = Module(client, TOKEN)
    assert list(module.info["models"]) == ["tiny"]
    assert client.auth_valid_token() is True
    file, params = client.infer("tiny", "scan", {}, file=str(guarded.scan))
    assert params["label_names"] == {"front": 1, "back": 2}
    assert same_place(Path(file), guarded.scan)


def test_over_https_sessions_need_a_certificate_that_is_trusted(connect, guarded):
    """The client takes any certificate, but in `create_session`, which goes through requests."""
    module = Module(connect(guarded.url), TOKEN)
    module.load(guarded.scan, "scan")
    with pytest.raises(Refused, match="SSLError"):
        module.segment("tiny")
    trusting = Module(connect(guarded.url, REQUESTS_CA_BUNDLE=str(guarded.folder / "cert.pem")), TOKEN)
    trusting.load(guarded.scan, "scan")
    file, labels = trusting.segment("tiny")
    assert labels == ["front", "back"]
    assert same_place(file, guarded.scan)


def test_a_request_that_announces_a_body_and_sends_none_is_answered(server):
    """A client that asks twice with a token keeps the Content-Length of what it sent before."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as line:
        line.sendall(f"GET /info/ HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Length: 50\r\n\r\n".encode())
        assert line.recv(100).startswith(b"HTTP/1.1 200")


# a scan in, segments out


@pytest.mark.parametrize("model", ["tiny", "sparse", "regions"])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".nii", ".seg.nrrd"])
def test_run_gives_each_label_its_own_segment_in_its_own_place(client, server, tmp_path, model, suffix):
    scan = oblique(tmp_path / f"MR head{suffix if suffix != '.seg.nrrd' else '.nrrd'}")
    if suffix == ".seg.nrrd":  # the module's choice of a file extension: 3D Slicer writes volumes so too
        scan = scan.rename(tmp_path / "MR head.seg.nrrd")
    module = Module(client)
    module.load(scan, "MR head")
    file, labels = module.segment(model)
    assert file.name.endswith(".nii.gz")
    segments = imported(file, labels)
    truth = predicted(server, scan, model)
    assert list(segments) == [label.name for label in truth.labels]
    if model == "regions":  # where labels overlap, the last one is seen
        assert np.array_equal(segments["core"], truth.mask("core"))
        assert np.array_equal(segments["whole"] | segments["core"], truth.mask("whole"))
        assert segments["whole"].any()
    else:
        assert all(np.array_equal(segments[name], truth.mask(name)) for name in segments)
        assert all(mask.any() for mask in segments.values())
    as_nifti = tmp_path / "scan.nii.gz"
    medseg.write(medseg.read(scan), as_nifti)
    assert same_place(file, as_nifti)
    assert medseg.read_labels(file).geometry.same_as(medseg.read(scan).geometry, tolerance=1e-4)


def test_the_client_of_the_python_package_does_the_same(connect, server):
    found = [*Path(os.environ.get("MEDSEG_JUDGES", "")).parent.glob("lib/python*/*/monailabel/client/client.py")]
    client = connect(server.url, file=found[0] if found else None)
    session = client.create_session(str(server.scan))["session_id"]
    file, params = client.infer("tiny", "", {}, session_id=session)
    assert same_place(Path(file), server.scan)
    assert params["label_names"] == {"front": 1, "back": 2}


def test_a_session_lasts_until_it_is_removed(client, server):
    made = client.create_session(str(server.scan))
    session = made["session_id"]
    assert made["session_info"]["name"] == session
    assert client.get_session(session)["expiry"] == 900
    files = [client.infer("tiny", "whatever", {}, session_id=session)[0] for _ in range(2)]
    assert all(same_place(Path(file), server.scan) for file in files)
    assert client.remove_session(session)["name"] == session
    for call in (client.get_session, client.remove_session):
        with pytest.raises(Refused) as refused:
            call(session)
        assert refused.value.status == 404
    with pytest.raises(Refused, match=r"Status: 404.*Upload Volume"):
        client.infer("tiny", "whatever", {}, session_id=session)


def test_a_session_that_nobody_asks_for_goes_and_upload_volume_helps(client, server, tmp_path):
    module = Module(client)
    module.load(oblique(tmp_path / "scan.nii.gz"), "scan")
    answer = httpx.put(f"{server.url}/session/?expiry=1", files={"files": module.volume.read_bytes()})
    assert answer.json()["session_info"]["expiry"] == 1
    module.sample["session_id"] = answer.json()["session_id"]
    kept = {*server.spool()}
    until = time.monotonic() + 120
    while kept <= {*server.spool()}:  # until it is gone; asking for it would keep it
        assert time.monotonic() < until
        time.sleep(0.1)
    with pytest.raises(Refused) as refused:  # the module shows it, and asks for no new session by itself
        module.segment("tiny")
    assert refused.value.status == 404
    module.upload()
    file, _ = module.segment("tiny")
    assert same_place(file, module.volume)


def test_zipped_dicom_makes_a_session_too(client, server, dicom):
    session = client.create_session(str(dicom))["session_id"]
    file, params = client.infer("tiny", "study", {}, session_id=session)
    truth = predicted(server, dicom, "tiny")
    found = medseg.read_labels(file)
    assert found.geometry.same_as(truth.geometry, tolerance=1e-4)
    assert np.array_equal(found.array, truth.array)
    assert set(params["volumes_ml"]) == {"front", "back"}


def test_a_scan_may_come_with_the_question(client, server):
    ignored = {"device": "cuda:7", "model_filename": "/etc/passwd", "roi_size": [1]}
    file, params = client.infer("sparse", "image", ignored, file=str(server.scan), label_in=str(server.scan))
    assert params["label_names"] == {"front": 1, "back": 2}
    assert params["qc"]["verdict"] in {"ok", "check", "refuse"}
    assert np.array_equal(medseg.read_labels(file).array > 0, predicted(server, server.scan, "sparse").array > 0)


def test_an_uploaded_scan_is_known_by_its_name_to_the_client_that_sent_it(connect, client, server):
    name = "4: T1 [ü] ../../etc"
    assert client.upload_image(str(server.scan), name) == {"image": name}
    file, _ = client.infer("tiny", name, {})
    assert same_place(Path(file), server.scan)
    other = connect(server.url, "other", client_id="somebody else")
    with pytest.raises(Refused, match="404"):
        other.infer("tiny", name, {})  # or it would get the segments of another patient
    with pytest.raises(Refused, match="400"):
        client.upload_image(str(server.scan), "x" * 300)


@pytest.mark.parametrize("image", ["", "/etc/passwd", "../scan", "https://example.com/scan.nii.gz", "scan.nii.gz"])
def test_the_name_of_a_scan_is_never_a_path(client, image):
    with pytest.raises(Refused, match="Status: 404"):
        client.infer("tiny", image, {})
    with pytest.raises(Refused, match="Status: 404"):
        client.infer("tiny", image, {}, session_id=f"{image}-session")


def test_a_model_that_does_not_exist_is_said_even_to_one_who_still_sends(client, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (1, 128, 128, 128)).astype(np.uint8)
    medseg.write(Volume(noise, Geometry(np.eye(4), noise.shape[1:])), tmp_path / "large.nii.gz")
    for model in ("other", "../tiny", "pair"):
        with pytest.raises(Refused, match=r"Status: 40[04]"):
            client.infer(model, "scan", {}, file=str(tmp_path / "large.nii.gz"))


def test_what_is_no_scan_is_refused_with_a_reason(client, tmp_path):
    (tmp_path / "scan.nii.gz").write_bytes(b"no scan at all")
    session = client.create_session(str(tmp_path / "scan.nii.gz"))["session_id"]
    with pytest.raises(Refused, match="Status: 422") as refused:
        client.infer("tiny", "scan", {}, session_id=session)
    assert "uploads" not in str(refused.value)
    assert str(tmp_path) not in str(refused.value)


# what an answer is made of


def parts(answer: httpx.Response) -> dict[str, bytes]:
    boundary = answer.headers["content-type"].partition("boundary=")[2]
    assert int(answer.headers["content-length"]) == len(answer.content)  # the client reads the bare connection
    found = re.findall(
        rb'name="(\w+)"(?:; filename="([^"]+)")?\r\n.*?\r\n\r\n(.*?)\r\n--' + boundary.encode(),
        answer.content,
        re.DOTALL,
    )
    return {(file or name).decode(): content for name, file, content in found}


@pytest.mark.parametrize("output", ["", "&output=all"])
def test_an_answer_is_params_and_one_file(server, output):
    answer = httpx.post(
        f"{server.url}/infer/tiny?image=x{output}", files={"file": server.scan.read_bytes()}, timeout=120
    )
    assert answer.headers["content-type"].startswith("multipart/form-data")
    params, (name, content) = (found := parts(answer)).pop("params"), found.popitem()
    assert not found
    assert name.endswith(".nii.gz")
    assert content.startswith(b"\x1f\x8b")
    assert json.loads(params)["label_names"] == {"front": 1, "back": 2}


def test_image_json_and_dicom_are_given_alone(server, dicom, tmp_path):
    def ask(output, scan):
        address = f"{server.url}/infer/sparse?output={output}"
        return httpx.post(address, files={"file": scan.read_bytes()}, data={"params": "{}"}, timeout=120)

    (tmp_path / "image.nii.gz").write_bytes(ask("image", server.scan).content)
    assert medseg.read_labels(tmp_path / "image.nii.gz").values() == [1, 2]
    assert ask("json", server.scan).json()["label_names"] == {"front": 1, "back": 2}
    answer = ask("dicom_seg", dicom)
    assert answer.headers["content-type"] == "application/dicom"
    (tmp_path / "seg.dcm").write_bytes(answer.content)
    truth = predicted(server, dicom, "sparse")
    found = medseg.read_labels(tmp_path / "seg.dcm", grid=truth.geometry)
    assert all(np.array_equal(found.mask(name), truth.mask(name)) for name in ("front", "back"))
    assert ask("dicom_seg", server.scan).status_code == 422
    assert ask("bmp", server.scan).status_code == 400


def test_three_clients_at_once_each_get_their_own(connect, server, tmp_path):
    scans = []
    for seed in range(3):
        scans.append(tmp_path / f"scan{seed}.nii.gz")
        medseg.write(smooth_scan((16, 16, 16 + seed), seed=seed), scans[-1])
    modules = [Module(connect(server.url, f"client{seed}", client_id=f"user{seed}")) for seed in range(3)]

    def work(module, scan):
        module.load(scan, "scan")
        return [module.segment("tiny")[0].read_bytes() for _ in range(4)]

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(work, modules, scans))
    for files, scan in zip(found, scans, strict=True):
        truth = predicted(server, scan, "tiny").array
        for content in files:
            (tmp_path / "one.nii.gz").write_bytes(content)
            assert np.array_equal(medseg.read_labels(tmp_path / "one.nii.gz").array, truth)


def test_everything_goes_when_nobody_keeps_a_session(client, server):
    session = client.create_session(str(server.scan))["session_id"]
    client.infer("tiny", "", {}, session_id=session)
    before = len(server.spool())
    client.remove_session(session)
    assert len(server.spool()) < before

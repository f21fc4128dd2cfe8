"""The result in 3D: what the server gives for it, and what niivue makes of it in a browser."""

import io
import os
import shutil
import subprocess
import sys
from hashlib import sha256

import numpy as np
import pytest
from browser import chromium, in_a_browser
from conftest import ORDERS, smooth_scan
from pages import segment, visiting
from PIL import Image
from serving import served

import medseg
from medseg.geometry import Geometry
from medseg.plan import Label
from medseg.report import viewing
from medseg.report.viewing import Kept, keep_planes
from medseg.server.viewer import get_viewer, viewer_file
from medseg.volume import LabelMap, Volume


@pytest.mark.parametrize("order", ORDERS[::7], ids=str)
@pytest.mark.parametrize("most", [1 << 27, 300])
def test_scan_and_labels_lie_where_they_are_in_the_patient(tmp_path, monkeypatch, order, most):
    monkeypatch.setattr(viewing, "_SOLID", most)  # of more voxels, only some are kept
    whole = smooth_scan((12, 16, 10), spacing=(1.0, 0.9, 2.0))
    scan = Volume(order.apply(whole.array), whole.geometry.reordered(order))
    table = (Label(value=7, name="a", atoms=(7, 9)), Label(value=3, name="b"))
    values = np.random.default_rng(0).choice(np.array([0, 3, 7, 9], np.uint16), scan.geometry.shape)
    keep_planes(scan, LabelMap(values, scan.geometry, table), tmp_path)
    grey, labels = (medseg.read(Kept(tmp_path).solid(which)) for which in ("scan", "labels"))
    assert grey.geometry.same_as(labels.geometry)
    assert (labels.array[0].size == values.size) == (most > values.size)
    places = grey.geometry.to_world(np.stack(np.indices(grey.geometry.shape), axis=-1))
    i, j, k = np.moveaxis(np.rint(scan.geometry.to_index(places)).astype(int), -1, 0)
    counted = np.select([values == 3, values > 3], [2, 1])
    np.testing.assert_array_equal(labels.array[0], counted[i, j, k])
    assert np.corrcoef(grey.array[0].ravel(), scan.array[0, i, j, k].ravel())[0, 1] > 0.99


def test_there_is_nothing_else_in_3d(tmp_path):
    scan = smooth_scan((4, 4, 4))
    keep_planes(scan, LabelMap(np.zeros((4, 4, 4), np.uint8), Geometry(np.eye(4), (4, 4, 4)), ()), tmp_path)
    with pytest.raises(medseg.errors.UsageError, match="nothing of this name"):
        Kept(tmp_path).solid("../planes")


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """A function that puts a program in the place of npm; returns where the viewer would be."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    (tmp_path / "bin").mkdir()

    def put(program):
        path = tmp_path / "bin" / "npm"
        path.write_text(f"#!{sys.executable}\nimport io, sys, tarfile\n{program}\n")
        path.chmod(0o755)
        return tmp_path / "data" / "medseg" / "viewer"

    return put


PACK = """
with tarfile.open("niivue.tgz", "w:gz") as archive:
    member = tarfile.TarInfo({name!r})
    member.size = 5
    archive.addfile(member, io.BytesIO(b"hello"))
print("niivue.tgz")
"""


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        ("sys.exit(1)", "npm could not fetch the viewer"),
        ("print('')", "npm could not fetch the viewer"),
        (PACK.format(name="package/dist/niivue.umd.js"), "another checksum"),
        (PACK.format(name="package/other.js"), "not as it should be"),
        ("open('niivue.tgz', 'wb').write(b'no archive'); print('niivue.tgz')", "not as it should be"),
    ],
)
def test_a_viewer_that_is_not_the_one_is_not_kept(npm, program, problem):
    folder = npm(program)
    with pytest.raises(medseg.errors.UsageError, match=problem):
        get_viewer()
    assert list(folder.iterdir()) == []
    assert viewer_file() is None


def test_a_viewer_that_is_the_one_is_kept_until_it_is_changed(npm, monkeypatch):
    npm(PACK.format(name="package/dist/niivue.umd.js"))
    monkeypatch.setattr("medseg.server.viewer.SHA256", sha256(b"hello").hexdigest())
    path = get_viewer()
    assert viewer_file() == path
    path.write_bytes(b"hallo")
    assert viewer_file() is None


@pytest.fixture
def viewer(tmp_path):
    """The folder of data of a user who has fetched niivue."""
    if shutil.which("npm") is None:
        pytest.skip("there is no npm to fetch niivue with")
    words = [sys.executable, "-m", "medseg", "serve", "--get-viewer"]
    own = {**os.environ, "XDG_DATA_HOME": str(tmp_path / "XDG_DATA_HOME")}
    done = subprocess.run(words, env=own, capture_output=True, text=True, check=False)
    if done.returncode == 2 and "npm could not fetch" in done.stderr:
        pytest.skip("npm cannot fetch niivue here")
    assert done.returncode == 0, done.stderr
    return tmp_path


@in_a_browser
@pytest.mark.slow
def test_the_result_is_seen_in_3d(viewer):
    with served(viewer) as server, chromium(viewer / "chromium") as browser, visiting(browser, server) as page:
        segment(page, server.scan)
        page.click("#open-solid")
        page.until("['shown', 'failed'].includes(document.querySelector('#solid').dataset.state)")
        assert page.js("document.querySelector('#solid').dataset.state") == "shown", page.text("#solid")
        box = [round(edge) for edge in page.box("#solid-canvas")]
        page.wait(lambda: all(seen(page, box)))
        for slider in ("#solid-labels", "#solid-scan"):
            page.js(f"document.querySelector('{slider}').value = 0")
            page.js(f"document.querySelector('{slider}').dispatchEvent(new Event('input'))")
        page.wait(lambda: not any(seen(page, box)))
        page.click("#close-solid")


def seen(page, box):
    """Return whether there is much that is not black, and much in colour: in all, and in the right half."""
    left, top, width, height = box
    with Image.open(io.BytesIO(page.picture())) as picture:
        pixels = np.array(picture.convert("RGB"))[top : top + height, left : left + width].astype(int)
    bright, coloured = pixels.max(axis=2) > 20, np.ptp(pixels, axis=2) > 60
    return [part.mean() > 0.05 for part in (bright, coloured, coloured[:, width // 2 :])]

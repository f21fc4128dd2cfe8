"""The page in a browser: what a person does with it, and what it must never do."""

import io
import json
import os
import shutil
import subprocess
import sys
from hashlib import sha256

import httpx
import numpy as np
import pytest
from browser import chromium, in_a_browser
from conftest import CARD, random_bundle, smooth_scan
from phantoms import series, store
from PIL import Image
from serving import served

import medseg
from medseg.bundle import Bundle

pytestmark = in_a_browser
HOSTILE = "</td><script>window.hurt=1</script><img src=x onerror=window.hurt=2>\"'&"
TOKEN = "a-secret-of-some-length"
# a program of the server's process: jobs stand still in the network as long as a file is there
HOLD = """
import pathlib, time, medseg.progress
overall = medseg.progress.overall
def held(stages, stage, done):
    while stage == "network" and done > 0 and pathlib.Path("hold").exists():
        time.sleep(0.01)
    return overall(stages, stage, done)
medseg.progress.overall = held
"""
COLOURED = """(view, rgb) => {
  const image = document.querySelector(`[data-view=${view}] img`);
  const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight), paper = canvas.getContext("2d");
  paper.drawImage(image, 0, 0);
  const data = paper.getImageData(0, 0, canvas.width, canvas.height).data;
  let count = 0, sum = 0;
  for (let n = 0; n < data.length; n += 4) {
    count += data[n] === rgb[0] && data[n + 1] === rgb[1] && data[n + 2] === rgb[2];
    sum = (sum * 31 + data[n] + 7 * data[n + 1] + 13 * data[n + 2]) % 4294967291;
  }
  return [count, sum];
}"""
STATE = "document.querySelector('.job').dataset.state"
DRAWN = (
    "document.querySelectorAll('.plane').length === 3 && document.querySelectorAll('.plane[data-shown]').length === 3"
)


@pytest.fixture(scope="module")
def chrome(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("browser") / "chromium") as browser:
        yield browser


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    medseg.write(smooth_scan((16, 16, 16)), folder / "scan.nii.gz")
    random_bundle(seed=8).save(folder / "both.safetensors")  # it finds both of its labels in this scan
    with served(folder, model=folder / "both.safetensors", site=HOLD) as one:
        yield one


@pytest.fixture
def visit(chrome):
    """A function that opens the page of a server; at the end nothing went wrong, and nobody else was asked."""
    visited = []

    def open_at(server, *, ready=True):
        page = chrome.open(f"{server.url}/")
        visited.append((server, page))
        if ready:
            page.until("document.querySelector('.drop') !== null")
        return page

    yield open_at
    for server, page in visited:
        assert [error for error in page.errors if " 401 " not in error] == []
        assert {url for url in page.requests if not url.startswith((f"{server.url}/", "blob:", "data:"))} == set()
        page.close()


@pytest.fixture
def page(server, visit):
    return visit(server)


def segment(page, *files, until="done"):
    page.choose("#drops input.files", *files)
    page.until("!document.querySelector('#send').disabled")
    page.click("#send")
    page.until(f"{STATE} === '{until}'")
    if until == "done":
        page.until(DRAWN)


def coloured(page, rgb, view="axial"):
    """Return how many pixels of a view have a colour, and a number that tells pictures apart."""
    return page.js(f"({COLOURED})({json.dumps(view)}, {json.dumps(rgb)})")


def shown(page, view="axial"):
    """Wait until the plane that is asked for is shown."""
    find = f"document.querySelector('[data-view={view}]')"
    page.until(f"{find}.querySelector('img').alt.endsWith(' ' + {find}.querySelector('output').textContent)")
    return page.js(f"{find}.querySelector('input').valueAsNumber")


def colours(server):
    return {label["name"]: label["rgb"] for label in httpx.get(f"{server.url}/models").json()[0]["labels"]}


def job_of(page):
    return page.js("JSON.parse(sessionStorage.getItem('medseg-jobs'))[0].id")


def test_a_scan_is_segmented_and_seen_with_its_labels(server, page):
    assert "For research use only. Not a medical device." in page.text("header")
    segment(page, server.scan)
    report = httpx.get(f"{server.url}/jobs/{job_of(page)}").json()["report"]
    rows = page.js(
        "[...document.querySelectorAll('#labels tbody tr')].map(row => [...row.cells].map(each => each.innerText.trim()))"
    )
    assert rows == [[each["name"], f"{each['volume_ml']:.3f}", "–"] for each in report["labels"]]
    assert page.js("document.querySelector('#verdict').dataset.verdict") == report["qc"]["verdict"]
    assert page.text("#verdict").split(":")[0].endswith(report["qc"]["verdict"].upper())
    assert all(reason["detail"] in page.text("#verdict") for reason in report["qc"]["reasons"])
    letters = page.js("[...document.querySelectorAll('[data-view=axial] .letter')].map(e => e.textContent).join('')")
    assert letters == "RLAP"
    for label in report["labels"]:
        assert label["voxels"]
        assert sum(coloured(page, colours(server)[label["name"]], view)[0] for view in ("axial", "coronal", "sagittal"))


def test_slider_keys_wheel_and_clicks_show_other_planes(server, page):
    segment(page, server.scan)
    at, before = shown(page), coloured(page, [0, 0, 0])[1]
    page.click("[data-view=axial] .picture", 0.1, 0.2)  # the other planes go through this point
    assert (shown(page, "sagittal"), shown(page, "coronal"), shown(page)) == (1, 3, at)
    step = -1 if at else 1
    page.key("ArrowLeft" if at else "ArrowRight")  # the slider has the focus now
    assert shown(page) == at + step
    assert coloured(page, [0, 0, 0])[1] != before
    page.wheel("[data-view=axial] .frame", -120 * step)
    page.until(f"document.querySelector('[data-view=axial] input').valueAsNumber === {at}")
    assert shown(page) == at
    assert coloured(page, [0, 0, 0])[1] == before


def test_of_many_planes_wanted_at_once_only_the_newest_is_asked_for(server, page):
    segment(page, server.scan)
    before = len(page.requests)
    page.js("""(() => { const slider = document.querySelector('[data-view=axial] input');
        for (let n = 0; n < 200; n += 1) { slider.value = n % 15; slider.dispatchEvent(new Event('input')); } })()""")
    assert shown(page) == 199 % 15
    assert 1 <= len([url for url in page.requests[before:] if "/planes/axial/" in url]) <= 2


def test_hidden_labels_are_not_drawn(server, page):
    segment(page, server.scan)
    rgb, front = colours(server), "#labels tbody tr:first-child input"
    view = next(v for v in ("axial", "coronal", "sagittal") if coloured(page, rgb["front"], v)[0])
    asked = f"document.querySelector('[data-view={view}]').dataset.shown"
    page.click(front)
    page.until(f"{asked}.endsWith('?hidden=front')")
    assert coloured(page, rgb["front"], view)[0] == 0
    page.click("#all-labels")  # some are shown, so that all are next
    page.until(f"{asked}.endsWith('?')")
    assert coloured(page, rgb["front"], view)[0]
    page.click("#all-labels")
    page.until(f"{asked}.endsWith('?bare=true')")
    assert [coloured(page, each, view)[0] for each in rgb.values()] == [0, 0]


def test_downloads_are_what_the_server_has(server, page):
    page.js("document.querySelector('[value=\"seg.nrrd\"]').checked = true")
    scan = server.folder / "Jane's scan.nii.gz"
    shutil.copy(server.scan, scan)
    segment(page, scan)
    job = job_of(page)
    names = {"nifti": "nii.gz", "seg.nrrd": "seg.nrrd", "picture": "png", "report": "json", "zip": "zip"}
    assert page.js("[...document.querySelectorAll('#downloads button')].map(b => b.dataset.kind)") == list(names)
    for kind, suffix in names.items():
        page.click(f"#downloads [data-kind='{kind}']")
        own = httpx.get(f"{server.url}/jobs/{job}/results/{kind}").content
        assert sha256(page.downloaded(f"Jane's scan_seg.{suffix}")).digest() == sha256(own).digest()


def test_a_job_is_cancelled_in_the_middle_and_others_wait_their_turn(server, page):
    hold = server.folder / "hold"
    hold.touch()
    scans = [server.folder / f"{n}.nii.gz" for n in range(4)]
    try:
        for scan in scans:
            shutil.copy(server.scan, scan)
            segment(page, scan, until="running" if scan in scans[:2] else "waiting")
        states = "[...document.querySelectorAll('.job')].map(e => e.querySelector('.state').textContent)"
        page.until(f"{states}[0].startsWith('Waiting, 1 before it') && {states}[1].startsWith('Waiting, next')")
        page.until(f"{states}.slice(2).some(words => words.startsWith('Running: network, '))")
        jobs = {each["name"]: each["id"] for each in page.js("JSON.parse(sessionStorage.getItem('medseg-jobs'))")}
        page.js("document.querySelectorAll('.job .cancel').forEach(button => button.click())")
        page.until("document.querySelectorAll('[data-state=waiting]').length === 0")
        running = jobs["0.nii.gz"], jobs["1.nii.gz"]
        assert {httpx.get(f"{server.url}/jobs/{job}").json()["state"] for job in running} == {"running"}
    finally:
        hold.unlink()
    page.until("document.querySelectorAll('[data-state=cancelled]').length === 4")
    assert {httpx.get(f"{server.url}/jobs/{job}").json()["state"] for job in running} == {"cancelled"}
    assert {httpx.get(f"{server.url}/jobs/{jobs[f'{n}.nii.gz']}").status_code for n in (2, 3)} == {404}
    assert page.js("document.querySelector('#result').hidden")


def test_an_upload_is_cancelled_on_its_way(server, page):
    large = server.folder / "large.nii.gz"
    large.write_bytes(np.random.default_rng(0).bytes(8 << 20))
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 100_000}
    page.call("Network.emulateNetworkConditions", **slow)
    jobs = httpx.get(f"{server.url}/health").json()["queue"]
    segment(page, large, until="sending")
    page.until("document.querySelector('.job progress').value > 0")
    assert page.text(".job .state").startswith("Sending, ")
    page.click(".job .cancel")
    page.until(f"{STATE} === 'cancelled'")
    page.until("!document.querySelector('.job .remove').hidden")
    assert httpx.get(f"{server.url}/health").json()["queue"] == jobs


def test_an_error_is_told_in_the_words_of_the_server(server, page):
    text = server.folder / "notes.nii.gz"
    text.write_text("this is no scan")
    segment(page, text, until="failed")
    answer = httpx.post(f"{server.url}/predict", files={"file": ("notes.nii.gz", text.read_bytes())}).json()["error"]
    said = page.text(".job .problem")
    assert answer["problem"].lower() in said.lower()
    assert answer["hint"] in said
    page.click(".job .remove")
    page.until("document.querySelector('.job') === null")


def test_a_server_that_is_gone_is_said(tmp_path, visit):
    with served(tmp_path) as server:
        page = visit(server)
        segment(page, server.scan)
        server.stop()
        page.key("Tab")
        page.click("#downloads [data-kind=nifti]")
        page.until("!document.querySelector('#result-problem').hidden")
        assert "The server does not answer" in page.text("#result-problem")
        page.errors.clear()  # the console tells of connections that were refused


def test_a_dicom_folder_is_dropped_chosen_or_sent_file_by_file(server, page):
    folder = store(series((20, 18, 12)), server.folder / "study")
    page.drop(".drop", folder)
    page.until("document.querySelector('.chosen').textContent.startsWith('study (')")
    page.choose("#drops input.folder", folder)
    page.until("document.querySelector('.chosen').textContent.startsWith('study (')")
    page.js("document.querySelector('[value=\"dicom-seg\"]').checked = true")
    slices = sorted(folder.glob("*.dcm"))
    segment(page, *slices)
    assert page.text("#result-title") == "12 DICOM files"
    assert "× 12 voxels" in page.text("#result-about")
    page.until("document.querySelector('#downloads [data-kind=dicom-seg]') !== null")
    page.click("[data-state=done] .remove")
    segment(page, *slices[:4], *slices[5:], until="failed")
    assert 'Options, "interpolate"' in page.text(".job .problem")
    page.js("document.querySelector('#repair').checked = true")
    segment(page, *slices[:4], *slices[5:])
    assert not page.js("document.querySelector('#warnings').hidden")


def test_results_are_found_again_when_the_page_is_loaded_anew(server, page):
    segment(page, server.scan)
    page.call("Page.reload")
    page.until(f"{STATE} === 'done' && {DRAWN}")
    assert page.text("#result-title") == server.scan.name


def test_a_channel_has_a_place_of_its_own(tmp_path, visit):
    model = tmp_path / "two.safetensors"
    channels = [{"name": each, "intensity": {"kind": "zscore"}} for each in ("t1", "t2")]
    random_bundle(channels=channels).save(model)
    for number, name in enumerate(("a", "b")):
        medseg.write(smooth_scan((16, 16, 16), seed=number), tmp_path / f"{name}.nii.gz")
    with served(tmp_path, model=model) as server:
        page = visit(server)
        page.choose("[data-channel=t1] input.files", tmp_path / "a.nii.gz")
        page.until("document.querySelector('[data-channel=t1] .chosen').textContent")
        assert page.js("document.querySelector('#send').disabled")
        page.choose("[data-channel=t2] input.files", tmp_path / "b.nii.gz")
        page.until("!document.querySelector('#send').disabled")
        page.click("#send")
        page.until(f"{STATE} === 'done' && {DRAWN}")


def test_the_token_is_asked_for_once_and_a_wrong_one_is_said(tmp_path, visit):
    (tmp_path / "token").write_text(TOKEN)
    with served(tmp_path, "--token-file", tmp_path / "token") as server:
        page = visit(server, ready=False)
        page.until("document.querySelector('#token-dialog').open")
        page.key("Escape")
        for wrong in ("not-the-token-at-all", "nötig"):
            page.js("document.querySelector('#token').value = ''; document.querySelector('#token').focus()")
            page.write(wrong)
            page.key("Enter")
            page.until("!document.querySelector('#token-problem').hidden")
            page.js("document.querySelector('#token-problem').hidden = true")
        page.js("document.querySelector('#token').value = ''")
        page.write(TOKEN)
        page.key("Enter")
        page.until("document.querySelector('.drop') !== null && !document.querySelector('#token-dialog').open")
        segment(page, server.scan)
        page.click("#downloads [data-kind=nifti]")
        assert page.downloaded("scan_seg.nii.gz")
        page.call("Page.reload")
        page.until(f"{STATE} === 'done' && !document.querySelector('#token-dialog').open")
        assert not [url for url in page.requests if TOKEN in url]
        assert TOKEN not in server.log()
        for path, status in {"/docs": 200, "/openapi.json": 200, "/page-settings": 401, "/models": 401}.items():
            assert httpx.get(f"{server.url}{path}").status_code == status


def test_names_that_hold_markup_do_nothing(tmp_path, visit):
    model = tmp_path / "hostile.safetensors"
    labels = [{"value": 1, "name": HOSTILE}, {"value": 2, "name": "javascript:window.hurt=3"}]
    bundle = random_bundle(labels=labels)
    card = CARD.model_copy(update={"summary": HOSTILE})
    Bundle.of(bundle.members, plan=bundle.plan, card=card).save(model)
    scan = tmp_path / f"{HOSTILE.replace('/', '')}.nii.gz"
    medseg.write(smooth_scan((16, 16, 16)), scan)
    with served(tmp_path, model=model) as server:
        page = visit(server)
        segment(page, scan)
        assert HOSTILE in page.text("#summary")
        assert HOSTILE in page.text("#labels")
        assert page.text("#result-title") == scan.name
        page.click("#labels tbody tr:first-child input")
        page.until("document.querySelector('[data-view=axial]').dataset.shown.includes('?hidden=')")
        assert page.js("window.hurt === undefined && document.querySelectorAll('script').length") == 1
        assert page.js("document.querySelectorAll('main img').length") == 3


def test_the_page_fits_a_narrow_window_and_every_control_has_a_name(server, page):
    page.size(400, 800)
    segment(page, server.scan)
    page.js("document.querySelector('#options').open = true")
    assert page.js("document.documentElement.scrollWidth") == 400
    roles = {"button", "slider", "checkbox", "combobox", "textbox", "spinbutton", "image", "progressbar", "link"}
    nodes = [node for node in page.call("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    controls = [(n["role"]["value"], n["name"]["value"]) for n in nodes if n["role"]["value"] in roles]
    assert {"button", "slider", "checkbox", "combobox", "textbox", "image", "link"} <= {role for role, _ in controls}
    assert [role for role, name in controls if not name] == []
    assert ("image", "axial plane") in {(role, name.rsplit(" ", 3)[0]) for role, name in controls}


def test_the_documentation_names_every_route(server, chrome):
    page = chrome.open(f"{server.url}/docs")
    page.until("document.readyState === 'complete' && document.querySelector('.route') !== null")
    schema = httpx.get(f"{server.url}/openapi.json").json()
    routes = {f"{method.upper()} {path}" for path, methods in schema["paths"].items() for method in methods}
    assert set(page.js("[...document.querySelectorAll('.route h3')].map(e => e.textContent)")) == routes
    assert page.errors == []
    assert "UserWarning" not in server.log()
    page.close()


@pytest.fixture(scope="module")
def viewer(tmp_path_factory):
    """The folder of data of a user who has fetched niivue."""
    if shutil.which("npm") is None:
        pytest.skip("there is no npm to fetch niivue with")
    home = tmp_path_factory.mktemp("viewer")
    words = [sys.executable, "-m", "medseg", "serve", "--get-viewer"]
    own = {**os.environ, "XDG_DATA_HOME": str(home / "XDG_DATA_HOME")}
    done = subprocess.run(words, env=own, capture_output=True, text=True, check=False)
    if done.returncode == 2 and "npm could not fetch" in done.stderr:
        pytest.skip("npm cannot fetch niivue here")
    assert done.returncode == 0, done.stderr
    return home


@pytest.mark.slow
def test_the_result_is_seen_in_3d(viewer, visit):
    with served(viewer) as server:
        page = visit(server)
        segment(page, server.scan)
        page.click("#open-solid")
        page.until("['shown', 'failed'].includes(document.querySelector('#solid').dataset.state)")
        assert page.js("document.querySelector('#solid').dataset.state") == "shown", page.text("#solid")
        left, top, width, height = map(round, page.box("#solid-canvas"))

        def seen():
            with Image.open(io.BytesIO(page.picture())) as picture:
                pixels = np.array(picture.convert("RGB"))[top : top + height, left : left + width].astype(int)
            coloured = np.ptp(pixels, axis=2) > 60
            return [part.mean() > 0.05 for part in (pixels.max(axis=2) > 20, coloured[:, width // 2 :], coloured)]

        page.wait(lambda: all(seen()))
        for slider in ("#solid-labels", "#solid-scan"):
            page.js(
                f"(() => {{ const e = document.querySelector('{slider}'); e.value = 0; e.dispatchEvent(new Event('input')); }})()"
            )
        page.wait(lambda: not any(seen()))
        page.click("#close-solid")

"""The page in a browser: what a person does with it, and what it must never do."""

import json
import shutil
from contextlib import ExitStack
from hashlib import sha256

import httpx
import numpy as np
import pytest
from browser import chromium, in_a_browser
from conftest import CARD, random_bundle, smooth_scan
from pages import DRAWN, READY, STATE, enter, segment, visiting
from phantoms import body, series, store
from serving import served

import medseg
from medseg.bundle import Bundle

pytestmark = in_a_browser
HOSTILE = "</td><script>window.hurt=1</script><img src=x onerror=window.hurt=2>\"'&"
NONE, TIMES = "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"
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


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server with a token, a model whose names are hostile, and one of two channels."""
    folder = tmp_path_factory.mktemp("guarded")
    medseg.write(smooth_scan((16, 16, 16)), folder / "scan.nii.gz")
    (folder / "token").write_text(TOKEN)
    channels = [{"name": each, "intensity": {"kind": "zscore"}} for each in ("t1", "t2")]
    labels = [{"value": 1, "name": HOSTILE}, {"value": 2, "name": "javascript:window.hurt=3"}]
    changes = {"tiny": {"labels": labels}, "two": {"channels": channels}}
    for name, changed in changes.items():
        bundle = random_bundle(**changed)
        card = CARD.model_copy(update={"name": name, "summary": HOSTILE})
        Bundle.of(bundle.members, plan=bundle.plan, card=card).save(folder / f"{name}.safetensors")
    options = "--token-file", folder / "token", "-m", folder / "two.safetensors"
    with served(folder, *options, model=folder / "tiny.safetensors") as one:
        yield one


@pytest.fixture
def visit(chrome):
    """A function that opens the page of a server."""
    with ExitStack() as visits:
        yield lambda server: visits.enter_context(visiting(chrome, server))


@pytest.fixture
def page(server, visit):
    page = visit(server)
    page.until(READY)
    return page


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
        "[...document.querySelectorAll('#labels tbody tr')].map(r => [...r.cells].map(each => each.innerText.trim()))"
    )
    assert rows == [[each["name"], f"{each['volume_ml']:.3f}", NONE] for each in report["labels"]]
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
        assert httpx.get(f"{server.url}/jobs/{jobs['0.nii.gz']}").json()["state"] == "running"  # it cannot stop yet
    finally:
        hold.unlink()
    page.until("document.querySelectorAll('[data-state=cancelled]').length === 4")
    page.wait(lambda: all(f"job {jobs[f'{n}.nii.gz'][:8]}: cancelled" in server.log() for n in (0, 1)))
    assert {httpx.get(f"{server.url}/jobs/{job}").status_code for job in jobs.values()} == {404}
    assert not [path for path in server.spool() if any(job in str(path) for job in jobs.values())]
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


def test_a_server_that_does_not_answer_is_said(server, page):
    segment(page, server.scan)
    gone = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.call("Network.emulateNetworkConditions", **gone)
    page.click("#downloads [data-kind=nifti]")
    page.until("!document.querySelector('#result-problem').hidden")
    assert "The server does not answer" in page.text("#result-problem")
    page.call("Network.emulateNetworkConditions", **{**gone, "offline": False})
    page.click("#downloads [data-kind=report]")
    page.downloaded("scan_seg.json")
    assert page.js("document.querySelector('#result-problem').hidden")
    page.errors.clear()  # the console tells of requests that went nowhere


def test_a_dicom_folder_is_dropped_chosen_or_sent_file_by_file(server, page):
    folder = store(series(body((20, 18, 12))), server.folder / "study")
    page.drop(".drop", folder)
    page.until("document.querySelector('.chosen').textContent.startsWith('study (')")
    page.choose("#drops input.folder", folder)
    page.until("document.querySelector('.chosen').textContent.startsWith('study (')")
    page.js("document.querySelector('[value=\"dicom-seg\"]').checked = true")
    slices = sorted(folder.glob("*.dcm"))
    segment(page, *slices)
    assert page.text("#result-title") == "12 DICOM files"
    assert f"{TIMES} 12 voxels" in page.text("#result-about")
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


def test_a_channel_has_a_place_of_its_own(guarded, visit):
    page = visit(guarded)
    enter(page, TOKEN)
    page.until("document.querySelector('#model').options.length === 2")
    page.js("document.querySelector('#model').value = 'two'")
    page.js("document.querySelector('#model').dispatchEvent(new Event('change'))")
    page.choose("[data-channel=t1] input.files", guarded.scan)
    page.until("document.querySelector('[data-channel=t1] .chosen').textContent")
    assert page.js("document.querySelector('#send').disabled")
    page.choose("[data-channel=t2] input.files", guarded.scan)
    page.until("!document.querySelector('#send').disabled")
    page.click("#send")
    page.until(f"{STATE} === 'done' && {DRAWN}")


def test_the_token_is_asked_for_once_and_a_wrong_one_is_said(guarded, visit):
    page = visit(guarded)
    page.until("document.querySelector('#token-dialog').open")
    page.key("Escape")
    page.until("document.querySelector('#token-dialog').open")  # nothing works without it
    for wrong in ("not-the-token-at-all", "nötig"):
        enter(page, wrong)
        page.until("!document.querySelector('#token-problem').hidden")
        page.js("document.querySelector('#token-problem').hidden = true")
    enter(page, TOKEN)
    page.until("document.querySelector('.drop') !== null && !document.querySelector('#token-dialog').open")
    segment(page, guarded.scan)
    page.click("#downloads [data-kind=nifti]")
    assert page.downloaded("scan_seg.nii.gz")
    page.call("Page.reload")
    page.until(f"{STATE} === 'done' && !document.querySelector('#token-dialog').open")
    assert not [url for url in page.requests if TOKEN in url]
    assert TOKEN not in guarded.log()
    for path, status in {"/docs": 200, "/openapi.json": 200, "/page-settings": 401, "/models": 401}.items():
        assert httpx.get(f"{guarded.url}{path}").status_code == status


def test_names_that_hold_markup_do_nothing(guarded, visit):
    page = visit(guarded)
    enter(page, TOKEN)
    scan = guarded.folder / f"{HOSTILE.replace('/', '')}.nii.gz"
    shutil.copy(guarded.scan, scan)
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

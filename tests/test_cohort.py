"""The table and the page of an archive run: exact, safe to open, and usable with ten thousand results."""

import base64
import csv
import hashlib
import io
import json
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import smooth_scan
from PIL import Image

from medseg.plan import Label
from medseg.report.cohort import Result, results_csv
from medseg.report.cohort_page import cohort_page
from medseg.report.cohort_volumes import MOST_VALUES, Spread, figure, histogram
from medseg.report.picture import draw, thumbnail
from medseg.volume import LabelMap

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
in_a_browser = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)><!--\"'&"


def result(number=0, state="done", verdict="ok", **changes):
    given = {
        "patient": f"p{number // 2:05d}",
        "study": f"t{number:05d}",
        "series": f"e{number:05d}",
        "model": "hippocampus-t1 2.1.0",
        "state": state,
        "verdict": verdict if state == "done" else "",
        "volumes": {"front": 1.5 + number / 1000, "back": 2.5} if state == "done" else {},
        "folder": f"p{number // 2:05d}/e{number:05d}",
    }
    return Result(**{**given, **changes})


def mixed(count):
    """Of ten results: one failed, one waiting, two refused, one to check, five ok."""
    states = [("failed", ""), ("waiting", ""), *[("done", "refuse")] * 2, ("done", "check"), *[("done", "ok")] * 5]
    for number in range(count):
        state, verdict = states[number % 10]
        changes = {"code": "GEOM_MISSING_SLICE", "problem": "a slice is missing"} if state == "failed" else {}
        if verdict == "refuse":
            changes["reasons"] = ("VOLUME",) if number % 20 == 2 else ("VOLUME", "EMPTY")
        yield result(number, state, verdict, **changes)


def rows(*results):
    return list(csv.DictReader(io.StringIO(b"".join(results_csv(results)).decode(), newline="")))


def page(results, **changes):
    return cohort_page(results, **{"title": "Run", **changes}).decode()


def embedded(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


class Elements(HTMLParser):
    """Start tags with their attributes, and all text outside of scripts and styles."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.inside = [], [], ""
        self.feed(html)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside not in {"script", "style"}:
            self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def browse(folder, html, address="", *switches):
    """Return what Chromium makes of a page in a folder, as elements."""
    path = folder / "index.html"
    path.write_text(html, encoding="utf-8")
    words = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    words += ["--virtual-time-budget=3000", *switches, "--dump-dom", f"{path.as_uri()}{address}"]
    return Elements(subprocess.run(words, capture_output=True, check=True, timeout=120).stdout.decode())


def shown(elements):
    """Return state or verdict of each card."""
    return [attributes["class"] for attributes in elements.all("article")]


def names(elements):
    return re.findall(r"\b(?:failed|refuse|check|ok|waiting) ?(e\d{5})\b", elements.text)


def test_the_table_has_a_row_for_each_label_and_one_for_what_has_none():
    done = result(7, verdict="check", reasons=("VOLUME", "EMPTY"), seconds=12.25)
    failed = result(8, "failed", code="TIME_LIMIT", problem='not done, "yet"\nafter 600 s')
    found = rows(done, failed, result(9, "waiting"), result(3, volumes={"vessel": None, "nan": np.nan}))
    assert [(row["series"], row["label"], row["volume_ml"]) for row in found] == [
        ("e00007", "front", "1.507"),
        ("e00007", "back", "2.5"),
        ("e00008", "", ""),
        ("e00009", "", ""),
        ("e00003", "vessel", ""),
        ("e00003", "nan", ""),
    ]
    assert found[0] == {
        "patient": "p00003",
        "study": "t00007",
        "series": "e00007",
        "model": "hippocampus-t1 2.1.0",
        "state": "done",
        "verdict": "check",
        "reasons": "VOLUME;EMPTY",
        "code": "",
        "problem": "",
        "label": "front",
        "volume_ml": "1.507",
        "seconds": "12.25",
        "folder": "p00003/e00007",
    }
    assert (found[2]["code"], found[2]["problem"]) == ("TIME_LIMIT", 'not done, "yet"\nafter 600 s')
    assert rows() == []


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t"])
def test_no_cell_of_the_table_is_a_formula(start):
    text = f"{start}cmd|' /C calc'!A0"
    row = rows(result(patient=text, series=text, problem=text, folder=text, volumes={text: 1.0}))[0]
    assert [row[name] for name in ("patient", "series", "problem", "folder", "label")] == [f"'{text}"] * 5
    assert row["volume_ml"] == "1"
    assert [row["problem"] for row in rows(result(problem=f"a\r{text}"))] == [f"a {text}"] * 2


def test_the_table_is_written_while_results_still_come():
    taken = 0

    def source():
        nonlocal taken
        for number in range(20_000):
            taken = number
            yield result(number)

    pieces = results_csv(source())
    assert b"e00000" in next(pieces)
    assert taken < 1000
    assert max(map(len, pieces)) < 100_000
    assert taken == 19_999


def test_a_name_that_is_no_unicode_does_not_stop_table_or_page():
    odd = result(series="s\udce9rie", folder="p/s\udce9rie #1?")
    assert b"s\\udce9rie" in b"".join(results_csv([odd]))
    row = embedded(page([odd]))["rows"][0]
    assert row[2] == "s\udce9rie"
    assert row[10] == "p/s%E9rie%20%231%3F"


def test_the_counts_are_those_of_the_results():
    elements = Elements(page(mixed(50), notes=["A note."]))
    assert "Run A note. 40 done 5 failed 5 waiting 25 ok 5 check 10 refuse" in elements.text
    assert "GEOM_MISSING_SLICE 5 a slice is missing e00000 e00010 e00020" in elements.text
    options = {attributes["value"] for attributes in elements.all("option")}
    assert {"VOLUME", "EMPTY", "GEOM_MISSING_SLICE", "volume:front"} <= options
    assert "VOLUME (10)" in elements.text
    assert "EMPTY (7)" in elements.text
    assert "For research use only. Not a medical device." in elements.text
    assert "Failures by reason" not in Elements(page([result()])).text


def test_a_result_without_a_verdict_needs_eyes():
    assert "0 ok 1 check 0 refuse" in Elements(page([result(verdict="")])).text


def test_what_users_write_stays_text():
    hostile = result(
        **dict.fromkeys(("patient", "study", "series", "model", "folder", "picture", "thumbnail"), HOSTILE),
        reasons=(HOSTILE,),
        volumes={HOSTILE: 1.0},
    )
    failed = result(1, "failed", code=HOSTILE, problem=HOSTILE)
    html = page([hostile, failed, result(2, volumes={HOSTILE: 0.0})], title=HOSTILE, notes=[HOSTILE])
    elements = Elements(html)
    assert len(elements.all("script")) == 2
    assert not elements.all("img")
    assert not [name for _, attributes in elements.tags for name in attributes if name.startswith("on")]
    assert elements.text.count("alert(1)") >= 7
    assert embedded(html)["models"][0] == [HOSTILE, [HOSTILE]]
    assert set(embedded(html)["rows"][1][10]).isdisjoint("<>\"'&:")


def test_only_the_pages_own_script_and_style_may_run_and_nothing_is_fetched():
    html = page(mixed(20))
    policy = next(attributes["content"] for attributes in Elements(html).all("meta") if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'; img-src 'self' file:;")
    assert "unsafe" not in policy
    for kind, text in (("style", html.split("<style>")[1].split("</style>")[0]), ("script", _script(html))):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert not re.search(r"https?:|//\w+\.|innerHTML|url\(|@import|\bfetch\b", html)


def _script(html):
    return re.search(r"<script>(.*)</script>", html, re.DOTALL)[1]


def test_with_too_many_results_those_that_need_eyes_are_kept_and_all_are_counted():
    html = page(mixed(100), most=45)
    found = embedded(html)
    kinds = [found["kinds"][row[4]] for row in found["rows"]]
    assert kinds == ["failed"] * 10 + ["refuse"] * 20 + ["check"] * 10 + ["ok"] * 5
    assert [row[2] for row in found["rows"][-5:]] == ["e00005", "e00006", "e00007", "e00008", "e00009"]
    text = Elements(html).text
    assert "80 done 10 failed 10 waiting 50 ok 10 check 20 refuse" in text
    assert "This page holds 45 of 100 results" in text
    assert "This page holds" not in page(mixed(100), most=100)


def test_the_bins_of_a_histogram_by_hand():
    spread = Spread()
    for volume, verdict in ((1.0, "ok"), (1.04, "ok"), (1.05, "check"), (1.72, "ok"), (2.1, "refuse"), (0.0, "check")):
        spread.add(volume, verdict)
    found = histogram(spread)  # 1.1 mL in 14 bins are 0.079 each: rounded up to 0.1
    assert (found.first, found.step, len(found.bins)) == (pytest.approx(1.0), pytest.approx(0.1), 12)
    counts = {place: bar for place, bar in enumerate(found.bins) if any(bar.values())}
    assert counts == {
        0: {"ok": 2, "check": 1, "refuse": 0},
        7: {"ok": 1, "check": 0, "refuse": 0},
        11: {"ok": 0, "check": 0, "refuse": 1},
    }
    assert (found.low, found.median, found.high) == (1.0, 1.05, 2.1)
    assert (spread.count, spread.absent, spread.sampled) == (5, 1, False)
    text = Elements(figure("a & b", spread)).text
    assert text == "a & b 1 2.2 mL n 5 · median 1.05 mL · 5–95 %: 1–2.1 · not found in 1"  # noqa: RUF001 - as shown


def test_a_volume_far_away_is_counted_and_does_not_squeeze_the_others():
    spread = Spread()
    for number in range(100):
        spread.add(2 + number / 100, "ok")
    spread.add(5000.0, "refuse")
    found = histogram(spread)
    assert found.above == {"ok": 0, "check": 0, "refuse": 1}
    assert not any(found.below.values())
    assert sum(bar["ok"] for bar in found.bins) == 100
    assert found.first + len(found.bins) * found.step < 6
    assert "1 above" in figure("label", spread)


def test_equal_volumes_and_volumes_of_nothing_can_be_drawn():
    spread = Spread()
    spread.add(3.0, "ok")
    spread.add(3.0, "check")
    assert sum(sum(bar.values()) for bar in histogram(spread).bins) == 2
    empty = Spread()
    empty.add(0.0, "check")
    assert "not found in 1" in figure("label", empty)
    assert "<svg" not in figure("label", empty)


def test_many_volumes_take_fixed_memory_and_keep_their_shape_and_rare_verdicts():
    spread = Spread()
    values = np.random.default_rng(0).gamma(9, 2, 40_000)
    for number, value in enumerate(values.tolist()):
        spread.add(value, "refuse" if number % 4000 == 0 else "ok")
    points = spread.points()
    assert len(points) == MOST_VALUES + 10
    assert sum(weight for _, weight, _ in points) == pytest.approx(40_000)
    assert sum(weight for _, weight, verdict in points if verdict == "refuse") == 10
    found = histogram(spread)
    assert (found.low, found.median, found.high) == pytest.approx(np.quantile(values, (0.05, 0.5, 0.95)), rel=0.05)
    assert spread.count == 40_000
    assert spread.sampled
    assert "drawn from 2,000 values" in page(result(number) for number in range(MOST_VALUES + 1))


def test_volumes_that_are_not_numbers_and_scans_without_size_leave_no_trace_in_the_plots():
    odd = [result(0, volumes={"a": np.nan, "b": np.inf}), result(1, volumes={"a": None, "b": None})]
    html = page(odd)
    assert "<svg" not in html
    assert [row[8] for row in embedded(html)["rows"]] == [[None, None]] * 2


def test_a_hundred_labels_stay_usable():
    html = page(result(number, volumes={f"label {n}": 1.0 + number for n in range(105)}) for number in range(10))
    assert html.count("<svg") == 105
    assert "93 more labels" in html.split("</figure>", 12)[-1].split("<figure>")[0]


def test_ten_thousand_results_make_a_small_page_quickly():
    began = time.perf_counter()
    content = cohort_page(mixed(10_000), title="Run")
    assert time.perf_counter() - began < 20  # 0.3 s on an idle core
    assert len(content) < 2_500_000
    assert cohort_page(mixed(10_000), title="Run") == content


@in_a_browser
def test_the_address_filters_and_turns_pages(tmp_path):
    html = page(mixed(1000))
    elements = browse(tmp_path, html, "#verdict=refuse&page=2")
    assert shown(elements) == ["refuse"] * 60
    assert "200 of 1,000 results" in elements.text
    assert "page 2 of 4" in elements.text
    assert names(elements)[:3] == ["e00302", "e00303", "e00312"]
    elements = browse(tmp_path, html, "#reason=EMPTY&q=E0001&sort=volume:front&down=1&page=99")
    assert names(elements) == ["e00013", "e00012"]
    assert "page 1 of 1" in elements.text


@in_a_browser
def test_without_an_address_the_first_page_shows_what_needs_eyes(tmp_path):
    results = [*mixed(100), result(100, thumbnail="a b.png", picture="a.png", verdict="refuse")]
    elements = browse(tmp_path, page(results))
    assert shown(elements) == ["failed"] * 10 + ["refuse"] * 21 + ["check"] * 10 + ["ok"] * 19
    assert [image["src"] for image in elements.all("img")] == ["./p00050/e00100/a%20b.png"]
    assert {"./p00050/e00100/a.png", "./p00050/e00100/"} <= {link["href"] for link in elements.all("a")}
    assert "hidden" not in elements.all("section")[0]


@in_a_browser
def test_keys_links_and_the_search_change_the_address_and_the_page(tmp_path):
    steps = """
    const say = (what) => document.body.append(`[${what}|${location.hash}|${found.textContent}|${page}]`);
    const press = (key) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    const turned = async (step) => {  // the event comes when the browser finds time for it
      let done = false;
      addEventListener("hashchange", () => { done = true; }, { once: true });
      step();
      while (!done) await new Promise((next) => setTimeout(next, 10));
    };
    const search = () => {
      press("/");
      document.activeElement.value = "e0009";
      document.activeElement.dispatchEvent(new Event("input", { bubbles: true }));
    };
    (async () => {
      await turned(() => press("ArrowRight")); say("right");
      await turned(() => press("ArrowLeft")); press("ArrowLeft"); say("left");
      await turned(() => document.querySelector(".tiles .refuse a").click()); say("tile");
      await turned(search); say("search");
      await turned(() => document.querySelector("button[type=reset]").click()); say("reset");
      await turned(() => history.back()); say("back");
      await turned(() => document.querySelector("article li a").click()); say("reason");
    })();
    """
    html = re.sub(r"script-src '[^']*'", "script-src 'unsafe-inline'", page(mixed(100)))
    text = browse(
        tmp_path, html.replace("</body>", f"<script>{steps}</script></body>"), "", "--virtual-time-budget=60000"
    ).text
    assert re.findall(r"\[(\w+)\|(\S*)\|(\d+) of 100 results\|(\d)\]", text) == [
        ("right", "#page=2", "100", "2"),
        ("left", "", "100", "1"),
        ("tile", "#verdict=refuse", "20", "1"),
        ("search", "#q=e0009&verdict=refuse", "2", "1"),
        ("reset", "", "100", "1"),
        ("back", "#q=e0009&verdict=refuse", "2", "1"),
        ("reason", "#reason=VOLUME", "20", "1"),
    ]


@in_a_browser
def test_hostile_texts_do_nothing_in_a_browser(tmp_path):
    odd = result(
        **dict.fromkeys(("patient", "series", "model"), HOSTILE),
        folder="javascript:alert(1)/\udcff",
        picture=HOSTILE,
        volumes={f"{HOSTILE}{number}": 1.0 for number in range(6)},
        reasons=(HOSTILE,),
    )
    elements = browse(tmp_path, page([odd, result(1, "failed", code=HOSTILE, problem=HOSTILE)], title=HOSTILE))
    assert shown(elements) == ["failed", "ok"]
    assert len(elements.all("script")) == 2
    assert not elements.all("img")
    assert all(re.match(r"#|\./|results\.csv$", link["href"]) for link in elements.all("a"))


def test_without_scripts_counts_failures_and_volumes_are_there():
    elements = Elements(page(mixed(100)))
    assert "hidden" in elements.all("section")[0]
    assert "Without scripts this page shows no single results" in elements.text
    assert "80 done 10 failed" in elements.text
    assert "Failures by reason" in elements.text
    assert len(elements.all("svg")) == 2


def test_a_thumbnail_shows_the_planes_with_labels_and_no_text():
    labels = (Label(value=1, name="front", color=(255, 0, 0)),)
    scan = smooth_scan((30, 40, 20))
    array = np.zeros(scan.geometry.shape, np.uint8)
    array[8:20, 10:30, 5:15] = 1
    texts = {"title": "model", "legend": ["front: 1 mL"], "verdict": "refuse"}
    png = draw(scan, LabelMap(array, scan.geometry, labels), **texts, notes=["a reason"] * 5)
    small = thumbnail(png)
    image = Image.open(io.BytesIO(small))
    # planes of 30 x 40, 30 x 20 and 40 x 20 mm, 340 pixels for 40 mm: 255 + 255 + 340 and two gaps of 12, 340 high
    assert image.size == (320, round(320 * 340 / 874))
    pixels = np.asarray(image.convert("RGB")).astype(int)
    red = pixels[..., 0] - pixels[..., 1] > 60
    assert [red[:, part].any() for part in (slice(0, 90), slice(100, 190), slice(200, 320))] == [True] * 3
    assert 0.1 < red.mean() < 0.5
    assert len(small) < 40_000
    assert thumbnail(draw(scan, LabelMap(array, scan.geometry, labels), **texts, notes=[])) == small

"""The picture of a training: axes, what is drawn where, and what is said."""

import io
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from medseg.plan import Label
from medseg.report.curves import (
    _DARK,
    _INK,
    _LINE,
    _RED,
    Point,
    _apart,
    _dice_scale,
    _fitted,
    _linear,
    _loss_scale,
    _powers,
    _readable,
    _run,
    _running_mean,
    curves,
)

RED, GREEN = Label(value=1, name="front", color=(200, 0, 0)), Label(value=2, name="back", color=(0, 120, 0))
LOSS, DICE, NAMES = slice(0, 510), slice(530, 960), slice(960, 1200)  # columns of the picture


def course(steps=600, *, seed=0, minutes=45, ends=(0.9, 0.8), every=50):
    """Return the points of a training that goes well."""
    rng = np.random.default_rng(seed)
    points = []
    for step in range(1, steps + 1):
        share = step / steps
        dice = {"front": ends[0] * share**0.1, "back": ends[1] * share**0.1} if step % every == 0 else {}
        points.append(Point(60 * minutes * share, (1.3 * math.exp(-4 * share) + 0.2) * rng.lognormal(sigma=0.1), dice))
    return points


def drawn(runs, labels=(RED, GREEN), title="tiny"):
    image = Image.open(io.BytesIO(curves(runs, labels, title=title)))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (1200, 560))
    return np.asarray(image).astype(int)


def places(pixels, colour, tolerance=60):
    """Return rows and columns of the pixels near a colour."""
    return np.nonzero(np.abs(pixels - colour).sum(axis=-1) <= tolerance)


def said(monkeypatch, runs, labels=(RED, GREEN), title="tiny"):
    """Return all texts of the picture, with the box that each takes, and the picture."""
    texts = []
    write = ImageDraw.ImageDraw.text

    def note(pen, at, text, **how):
        texts.append((text, pen.textbbox(at, text, font=how["font"], anchor=how["anchor"])))
        write(pen, at, text, **how)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
    return texts, drawn(runs, labels, title)


def words(texts):
    return [text for text, _ in texts]


MANY = tuple(Label(value=n + 1, name=f"label {n}") for n in range(14))
SITUATIONS = {
    "one member": ({"a": course()}, (RED, GREEN)),
    "five members of 14 labels": (
        {f"fold {n}": [Point(p.seconds, p.loss, {label.name: 0.6 + i / 50 for i, label in enumerate(MANY)})
                       for p in course(60, seed=n)] for n in range(1, 6)}, MANY),
    "equal values of 14 labels": ({"a": [Point(9, 1, {label.name: 1.0 for label in MANY})]}, MANY),
    "one point": ({"a": [Point(3, 1.2, {"front": 0.1, "back": 0.0})]}, (RED, GREEN)),
    "one point at the start": ({"a": [Point(0, 0)]}, (RED, GREEN)),
    "nothing": ({}, (RED, GREEN)),
    "a member that has not begun": ({"a": course(100), "b": []}, (RED, GREEN)),
    "no validation": ({"a": course(every=10**9)}, (RED, GREEN)),
    "all nan": ({"a": [Point(n, math.nan, {"front": math.nan}) for n in range(9)]}, (RED, GREEN)),
    "an explosion": ({"a": [Point(n, math.exp(n / 10) if n < 600 else math.inf) for n in range(700)]}, (RED, GREEN)),
    "a negative loss": ({"a": [Point(n, -1 + 1 / n) for n in range(1, 99)]}, (RED,)),
    "one loss for ever": ({"a": [Point(n, 0.7) for n in range(99)], "b": [Point(n, -2) for n in range(9)]}, (RED,)),
    "long names": ({f"a very long name of a member, {n}": course(30, seed=n) for n in range(9)},
                   (Label(value=1, name="a very long name of a label " * 9), GREEN)),
    "a hundred labels": ({"a": [Point(9, 1, {f"label {n}": n / 104 for n in range(104)})]},
                         tuple(Label(value=n + 1, name=f"label {n}") for n in range(104))),
    "a long training": ({"a": course(30000, minutes=3000)}, (RED, GREEN)),
}  # fmt: skip


@pytest.mark.parametrize("situation", SITUATIONS)
def test_no_text_overlaps_another_or_leaves_the_picture(monkeypatch, situation):
    texts, _ = said(monkeypatch, *SITUATIONS[situation], title=situation)
    for text, (left, top, right, bottom) in texts:
        assert 0 <= left <= right <= 1200, text
        assert 0 <= top <= bottom <= 560, text
    for number, (text, box) in enumerate(texts):
        for other, place in texts[number + 1 :]:
            apart = box[2] <= place[0] or place[2] <= box[0] or box[3] <= place[1] or place[3] <= box[1]
            assert apart, (text, other)


def test_the_same_course_gives_the_same_bytes():
    assert curves({"a": course()}, (RED, GREEN), title="x") == curves({"a": course()}, (RED, GREEN), title="x")


def test_title_and_final_numbers_stand_above(monkeypatch):
    texts, _ = said(monkeypatch, {"a": [Point(n * 60, 0.5, {"front": n / 60, "back": 0.5}) for n in range(1, 55)]})
    assert words(texts)[:2] == ["tiny", "54 minutes  \u00b7  loss 0.5  \u00b7  Dice 0.700 (mean of 2 labels)"]
    found = [text for text, box in texts if box[0] > 960]
    assert found == ["0.900", "front", "0.700", "mean", "0.500", "back"]


def test_final_numbers_are_means_over_the_members_that_have_any(monkeypatch):
    runs = {
        "one": [Point(60, 0.4, {"front": 0.8, "back": 0.6}), Point(120, 0.4, {"front": math.nan})],
        "two": [Point(60, 0.6, {"front": 0.9})],
        "new": [],
        "lost": [Point(60, math.nan)],
    }
    texts, _ = said(monkeypatch, runs)
    assert "3 members  \u00b7  120 seconds  \u00b7  loss 0.5  \u00b7  Dice 0.800 (mean of 2 labels)" in words(texts)
    assert "1 step without a finite loss" in words(texts)
    assert [text for text, box in texts if box[0] > 960] == ["0.850", "front", "0.800", "mean", "0.600", "back"]


def test_one_label_has_no_mean(monkeypatch):
    texts, pixels = said(monkeypatch, {"a": course()}, (RED,))
    assert "45 minutes" in words(texts)[1]
    assert words(texts)[1].endswith("Dice 0.900")
    assert "mean" not in words(texts)
    assert not len(places(pixels[130:485, DICE], _INK)[0])


def test_each_label_has_its_colour_and_the_better_one_stands_higher():
    pixels = drawn({"a": course()})[130:485, DICE]
    front, back = (places(pixels, label.rgb)[0] for label in (RED, GREEN))
    assert len(front) > 300
    assert len(back) > 300
    assert front.mean() < back.mean()


def test_a_value_stands_at_its_height_and_time():
    values = {"front": 0.75, "back": 0.75}
    pixels = drawn({"a": [Point(0, 1, values), Point(100, 1, values)]}, (RED,))
    rows, columns = places(pixels[:, DICE], RED.rgb)
    # the axis of Dice goes from 0.7 (row 492) to 1 (row 122); that of the time from column 556 to 954
    assert rows.mean() == pytest.approx(492 - 370 * (0.75 - 0.7) / 0.3, abs=1)
    assert columns.min() + 530 == pytest.approx(554, abs=2)


def test_what_lies_below_the_axis_of_dice_is_cut_off():
    points = [Point(n, 1, {"front": 0.1 if n < 10 else 0.9}) for n in range(21)]
    rows, columns = places(drawn({"a": points}, (RED,))[100:, DICE], RED.rgb)
    assert len(rows)
    assert columns.min() + 530 > 556 + 398 * 9 / 20


def test_the_running_mean_is_dark_and_every_step_is_pale():
    pixels = drawn({"a": course()})[130:485, LOSS]
    dark, pale = places(pixels, _DARK)[0], places(pixels, (196, 211, 233), 10)[0]
    assert len(dark) > 300
    assert len(pale) > 3 * len(dark)


def test_steps_without_a_finite_loss_are_marked_and_counted(monkeypatch):
    points = [Point(n, math.nan if 40 <= n < 60 else math.inf if n == 90 else 1.0) for n in range(101)]
    texts, pixels = said(monkeypatch, {"a": points})
    assert "21 steps without a finite loss" in words(texts)
    rows, columns = places(pixels[100:135, LOSS], _RED)
    assert len(rows)
    marked = {round((column - 74) / 399 * 100) for column in columns.tolist()}
    assert marked <= {*range(39, 61), *range(89, 92)}
    assert {45, 55, 90} <= marked
    assert not len(places(drawn({"a": course()})[100:135, LOSS], _RED)[0])


def test_an_explosion_does_not_drown_what_comes_after_it():
    loss = np.full(4000, 0.25)
    loss[1000] = 1e30
    time, mean = _running_mean(np.arange(4000.0), loss)
    assert mean.max() > 1e27
    np.testing.assert_array_equal(mean[time > 1500], 0.25)


@given(st.integers(1, 3000), st.integers(0, 5))
@settings(max_examples=30)
def test_the_running_mean_keeps_level_and_slope(steps, seed):
    time = np.cumsum(np.random.default_rng(seed).random(steps) + 0.1)
    when, mean = _running_mean(time, 3 * time + 1)
    np.testing.assert_allclose(mean, 3 * when + 1)
    assert all(one < other for one, other in pairwise(when))
    assert len(when) == min(steps, 400)


def test_the_running_mean_knows_no_direction():
    loss = np.random.default_rng(0).random(400)
    when, mean = _running_mean(np.arange(400.0), loss)
    back, same = _running_mean(np.arange(400.0), loss[::-1])
    np.testing.assert_allclose(mean, same[::-1])
    np.testing.assert_allclose(when, 399 - back[::-1])


def test_the_running_mean_leaves_out_what_is_no_number():
    when, mean = _running_mean(np.arange(6.0), np.array([1, math.nan, 3, math.inf, -math.inf, 5]))
    assert (when.tolist(), mean.tolist()) == ([0, 2, 5], [1, 3, 5])
    assert not len(_running_mean(np.arange(3.0), np.full(3, math.nan))[0])


def scale_of(*losses):
    return _loss_scale([_run("a", [Point(n, loss) for n, loss in enumerate(losses)], (RED,), 1)])


def test_the_loss_has_a_logarithmic_axis_beyond_a_factor_of_ten():
    assert not scale_of(1.0, 0.11).log
    assert scale_of(1.0, 0.09).log
    assert scale_of(1.0, 0.09).ticks == (0.1, 0.2, 0.5, 1)
    assert scale_of(1, 1e6).ticks == (1, 10, 100, 1000, 1e4, 1e5, 1e6)
    assert scale_of(1, 1e6).texts() == ["1", "10", "100", "1000", "10000", "1e+05", "1e+06"]
    assert not scale_of(-1, 100).log


def test_one_lucky_step_does_not_stretch_the_axis():
    scale = scale_of(*[0.5] * 500, 1e-9, *[0.5] * 500)
    assert not scale.log
    assert scale.low > 0.4


def test_a_step_beyond_the_axis_stands_at_its_end():
    points = [Point(n, 1e-9 if n == 500 else 0.5 if n % 2 else 0.49) for n in range(1001)]
    rows, columns = places(drawn({"a": points})[488:492, LOSS], (196, 211, 233), 10)
    assert len(rows)
    assert np.abs(columns - (74 + 399 / 2)).max() <= 3


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_round_numbers_lie_on_the_axis_and_are_told_apart(low, size):
    scale = _linear(low, low + size)
    assert 2 <= len(scale.ticks) <= 7
    assert all(low - 1e-6 * size <= tick <= low + size * (1 + 1e-6) for tick in scale.ticks)
    gaps = np.diff(scale.ticks)
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-5)


@given(st.floats(1e-30, 1e30), st.floats(10, 1e30))
def test_powers_lie_on_the_axis(low, factor):
    scale = _powers(low / 1.15, low * factor * 1.15)
    assert 1 <= len(scale.ticks) <= 9
    assert list(scale.ticks) == sorted({*scale.ticks})
    assert all(-1e-9 <= share <= 1 + 1e-9 for share in scale.share(np.array(scale.ticks)))


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0, 45, ["0", "10", "20", "30", "40"]),
        (0, 60, ["0", "10", "20", "30", "40", "50", "60"]),
        (0.8, 1, ["0.80", "0.85", "0.90", "0.95", "1.00"]),
        (0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0, 3, ["0.0", "0.5", "1.0", "1.5", "2.0", "2.5", "3.0"]),
        (-1, 0.5, ["-1.00", "-0.75", "-0.50", "-0.25", "0.00", "0.25", "0.50"]),
        (0, 3e6, ["0", "5e+05", "1e+06", "1.5e+06", "2e+06", "2.5e+06", "3e+06"]),
    ],
)
def test_ticks_are_sensible_numbers(low, high, texts):
    assert _linear(low, high).texts() == texts


def dice_scale(*values):
    return _dice_scale([_run("a", [Point(n, 1, {"front": value}) for n, value in enumerate(values)], (RED,), 1)]).low


def test_the_axis_of_dice_begins_below_the_later_half():
    assert dice_scale(0.1, 0.5, 0.86, 0.87) == 0.8
    assert dice_scale(0.1, 0.5, 0.81, 0.87) == 0.7
    assert dice_scale(0.1, 0.99, 0.99, 1.0) == 0.9
    assert dice_scale(0.9, 0.9, 0.0, 0.9) == 0
    assert dice_scale(math.nan, math.nan) == 0
    assert _dice_scale([]).low == 0


def test_the_mean_is_always_one_of_the_same_labels():
    points = [Point(1, 1, {"front": 0.9}), Point(2, 1, {"front": 0.9, "back": 0.5}), Point(3, 1, {"other": 1})]
    run = _run("a", points, (RED, GREEN, Label(value=3, name="never")), 1)
    assert run.when.tolist() == [1, 2]
    assert np.isnan(run.dice[0, -1])
    assert run.dice[1, -1] == 0.7


@given(st.lists(st.floats(122, 492), max_size=19))
def test_names_stand_apart_in_their_order_and_on_the_sheet(heights):
    heights.sort()
    placed = _apart(heights, 122, 492)
    assert all(other - one >= _LINE - 1e-6 for one, other in pairwise(placed))
    assert all(122 - 1e-6 <= height <= 492 + 1e-6 for height in placed)


def test_names_that_have_room_stay_where_they_are_and_others_move_evenly():
    assert _apart([150, 200, 300], 122, 492) == [150, 200, 300]
    assert _apart([200, 200], 122, 492) == [200 - _LINE / 2, 200 + _LINE / 2]


def test_of_too_many_labels_the_lowest_and_the_mean_are_named(monkeypatch):
    texts, _ = said(monkeypatch, *SITUATIONS["a hundred labels"])
    found = [text for text, box in texts if box[0] > 960]
    assert found[:4] == ["0.495", "mean", "0.163", "label 17"]
    assert found[-3:] == ["0.000", "label 0", "lowest of 104 labels"]


def test_time_is_told_in_the_unit_that_fits(monkeypatch):
    for seconds, text in ((90, "90 seconds"), (3600, "60 minutes"), (36000, "10 hours")):
        texts, _ = said(monkeypatch, {"a": [Point(seconds, 1.0)]})
        assert text in words(texts)[1]
        assert words(texts).count(f"{text.split()[1]} of training") == 2


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_every_colour_can_be_seen_on_white(colour):
    found = _readable(colour)
    shares = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in found]
    assert 1.05 / (np.dot(shares, (0.2126, 0.7152, 0.0722)) + 0.05) >= 3
    assert all(a <= b for a, b in zip(found, colour, strict=True))


def test_a_dark_colour_stays_as_it_is():
    assert _readable((200, 0, 0)) == (200, 0, 0)
    assert _readable((255, 255, 0)) != (255, 255, 0)


def test_texts_keep_to_the_letters_of_the_font():
    assert _fitted("Gef\u00e4\u00df\n \u4e2d", 13, 500) == "Gefa? ?"
    assert _fitted("short", 13, 500) == "short"
    assert _fitted("much too long a name", 13, 60).endswith("...")
    assert _fitted("x", 13, 0) == "..."

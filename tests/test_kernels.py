"""The loops over voxels: plain, compiled and on a device give the same bits, and nobody waits for a compiler."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import product

import numpy as np
import pytest

from medseg.kernels import CERTAIN, Host, compile_now, host, plain

CHANNELS = [1, 2, 14, 300]


@pytest.fixture(scope="module")
def compiled():
    pytest.importorskip("numba")
    from medseg.kernels import compiled

    return compiled


@pytest.fixture
def loops(monkeypatch):
    """Loops of a process that has just begun."""
    fresh = host._Loops()
    monkeypatch.setattr(host, "_LOOPS", fresh)
    return fresh


def rng(seed=0):
    return np.random.default_rng(seed)


def taps(count, points):
    at = np.clip((np.arange(points) + 0.5) * count / points - 0.5, 0, count - 1)
    lower = np.floor(at).astype(np.intp)
    return lower, np.minimum(lower + 1, count - 1), (at - lower).astype(np.float32)


def settled(channels, rows=13, columns=37, *, smooth=False, seed=0):
    """Two planes of logits and their largest channels."""
    planes = rng(seed).normal(size=(2, channels, rows, columns)).astype(np.float32)
    if smooth:
        from scipy import ndimage

        planes = np.stack([ndimage.gaussian_filter(plane, (0, 4, 4)) for plane in planes])
        planes[1] = planes[0] * np.float32(1.1)
    labels = planes.argmax(1).astype(np.uint8 if channels <= 256 else np.uint16)
    return tuple(planes), tuple(labels)


def same_bits(first, second):
    return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()


# By hand


def test_blending_adds_weighted_logits_and_weights():
    slab, counts = np.ones((1, 2, 1, 2), np.float32), np.ones((1, 1, 2), np.float32)
    answer = np.array([[[[1, 2]], [[3, 4]]]], np.float32)
    Host(1).blend(slab, counts, answer, np.array([[[0.5, 2]]], np.float32), 0)
    assert slab.tolist() == [[[[1.5, 5]], [[2.5, 9]]]]
    assert counts.tolist() == [[[1.5, 3]]]


def test_a_window_that_reaches_the_end_of_the_ring_goes_on_at_its_beginning():
    slab, counts = np.zeros((3, 1, 1, 1), np.float32), np.zeros((3, 1, 1), np.float32)
    answer, weights = np.array([5, 7], np.float32).reshape(2, 1, 1, 1), np.array([1, 2], np.float32).reshape(2, 1, 1)
    Host(1).blend(slab, counts, answer, weights, 2)
    assert slab.ravel().tolist() == [14, 0, 5]
    assert counts.ravel().tolist() == [2, 0, 1]


def test_settling_gives_means_the_first_of_equals_and_certain_background_where_no_window_looked():
    plane = np.array([[[2, 0, 4]], [[6, 0, 4]], [[100, 0, 0]]], np.float32)
    labels = np.full((1, 3), 9, np.uint8)
    Host(1).settle(plane, np.array([[2, 0, 4]], np.float32), labels, 2)
    assert plane.tolist() == [[[1, CERTAIN, 1]], [[3, 0, 1]], [[50, 0, 0]]]
    assert labels.tolist() == [[1, 0, 0]]


def test_the_border_between_two_labels_lies_where_their_logits_cross():
    plane = np.array([[[0, 0]], [[-1, 3]]], np.float32)  # they cross at a quarter of the way
    labels = plane.argmax(0).astype(np.uint8)
    at = np.linspace(0, 1, 9, dtype=np.float32)
    columns = np.zeros(9, np.intp), np.ones(9, np.intp), at
    out = np.full((1, 9), 7, np.uint8)
    Host(1).between((plane, plane), (labels, labels), 0.0, taps(1, 1), columns, out)
    assert out.tolist() == [[0, 0, 0, 1, 1, 1, 1, 1, 1]]  # at a quarter they are equal: the first


@pytest.mark.parametrize("channels", CHANNELS)
def test_what_lies_between_planes_is_the_largest_of_all_channels_there(channels):
    planes, labels = settled(channels)
    rows, columns = taps(13, 20), taps(37, 30)
    out = np.zeros((20, 30), labels[0].dtype)
    plain.between(planes, labels, 0.3, rows, columns, out)
    assert (out == plain.plane_between(planes, 0.3, rows, columns).argmax(0)).all()


def test_what_the_neighbours_agree_on_is_not_computed():
    planes, _ = settled(3)
    labels = np.full((13, 37), 2, np.uint8)
    out = np.zeros((13, 37), np.uint8)
    Host(1).between(planes, (labels, labels), 0.5, taps(13, 13), taps(37, 37), out)
    assert (out == 2).all()


# Compiled


@pytest.mark.parametrize(("channels", "axis", "first"), [*product(CHANNELS, range(3), (0, 13))])
def test_compiled_blending_gives_the_bits_of_the_plain_one(compiled, channels, axis, first):
    order = (1 + axis, 0, *(1 + other for other in range(3) if other != axis))
    answer = rng().normal(size=(channels, 17, 18, 19)).astype(np.float32).transpose(order)
    answer.flags.writeable = False
    weights = rng(1).random((*answer.shape[:1], *answer.shape[2:]), dtype=np.float32)
    results = []
    for loops in (plain, compiled):
        slab = rng(2).normal(size=(20, channels, 30, 31)).astype(np.float32)
        counts = rng(3).random((20, 30, 31), dtype=np.float32)
        part = slice(5, 5 + answer.shape[2]), slice(4, 4 + answer.shape[3])
        loops.blend(slab[:, :, *part], counts[:, *part], answer, weights, first)
        results.append((slab, counts))
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("axis", range(4))
def test_compiled_blending_takes_mirrored_answers_and_answers_with_channels_last(compiled, axis):
    answer = rng().normal(size=(18, 7, 9, 3)).astype(np.float32).transpose(0, 3, 1, 2)
    weights = rng(1).random((18, 7, 9), dtype=np.float32)
    results = [np.zeros((18, 3, 7, 9), np.float32) for _ in range(2)]
    for loops, slab in zip((plain, compiled), results, strict=True):
        loops.blend(slab, np.zeros((18, 7, 9), np.float32), np.flip(answer, axis), weights, 0)
        loops.blend(slab, np.zeros((18, 7, 9), np.float32), np.flip(np.ascontiguousarray(answer), axis), weights, 17)
    assert same_bits(*results)


@pytest.mark.parametrize(("channels", "extra"), [*product(CHANNELS, (0, 3))])
def test_compiled_settling_gives_the_bits_of_the_plain_one(compiled, channels, extra):
    sums = rng().integers(-3, 4, (channels + extra, 9, 70)).astype(np.float32)  # many ties
    counts = rng(1).random((9, 70), dtype=np.float32) + 0.5
    counts[2] = 0
    counts[5, ::3] = 0
    sums *= counts != 0
    results = []
    for loops in (plain, compiled):
        slab, labels = np.zeros((channels + extra, 12, 80), np.float32), np.full((9, 70), 7, np.uint16)
        if channels <= 256:
            labels = labels.astype(np.uint8)
        part = slab[:, 2:11, 3:73]
        part[:] = sums
        loops.settle(part, counts, labels, channels)
        results.append((slab, labels))
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))
    mean = sums[:channels, counts != 0] / counts[counts != 0]
    assert (results[0][1][counts != 0] == mean.argmax(0)).all()
    assert not results[0][1][counts == 0].any()


@pytest.mark.parametrize(("channels", "smooth"), [*product(CHANNELS, (False, True))])
@pytest.mark.parametrize("points", [(13, 37), (1, 1), (29, 90), (5, 11)])
def test_compiled_interpolation_gives_the_labels_of_the_plain_one(compiled, channels, smooth, points):
    planes, labels = settled(channels, smooth=smooth)
    for fraction in (0.0, 0.37):
        results = []
        for loops in (plain, compiled):
            whole = np.full((points[1], points[0] + 2), 5, labels[0].dtype)
            out = np.flip(whole.T[1:-1], 1)  # as in a scan stored in another order
            loops.between(planes, labels, fraction, taps(13, points[0]), taps(37, points[1]), out)
            results.append(whole)
        assert same_bits(*results)


def test_compiled_interpolation_breaks_ties_as_the_plain_one_does(compiled):
    planes = tuple(rng().integers(0, 2, (2, 5, 20, 70)).astype(np.float32))
    labels = tuple(plane.argmax(0).astype(np.uint8) for plane in planes)
    results = [np.zeros((39, 139), np.uint8) for _ in range(2)]
    rows, columns = ((np.arange(n) // 2, (np.arange(n) + 1) // 2, np.float32([0, 0.5] * n)[:n]) for n in (39, 139))
    for loops, out in zip((plain, compiled), results, strict=True):
        loops.between(planes, labels, 0.5, rows, columns, out)
    assert same_bits(*results)
    assert same_bits(results[0], plain.plane_between(planes, 0.5, rows, columns).argmax(0).astype(np.uint8))


def test_compiled_interpolation_takes_points_in_any_order(compiled):
    planes, labels = settled(6, columns=200)
    rows, columns = ([np.array(part)[rng(4).permutation(n)] for part in taps(n, n)] for n in (13, 200))
    rows[2], columns[2] = rng().random((13,), np.float32), rng().random((200,), np.float32)
    results = [np.zeros((13, 200), np.uint8) for _ in range(2)]
    for loops, out in zip((plain, compiled), results, strict=True):
        loops.between(planes, labels, 0.5, tuple(rows), tuple(columns), out)
    assert same_bits(*results)


def test_what_the_compiled_loops_are_not_made_for_is_done_by_the_plain_ones(compiled):
    (first, second), labels = settled(4)
    results = [np.zeros((13, 18), np.uint8) for _ in range(2)]
    for loops, out in zip((plain, compiled), results, strict=True):
        every_other = first[:, :, ::2], second[:, :, ::2]
        loops.between(every_other, tuple(label[:, ::2] for label in labels), 0.5, taps(13, 13), taps(19, 18), out)
    assert same_bits(*results)
    plane, counts, found = first[:, ::-1, ::-1].copy()[:, :, ::-1], np.ones((13, 37), np.float32), labels[0] * 0
    compiled.settle(plane, counts, found, 4)
    assert (found == first[:, ::-1].argmax(0)).all()


def test_indices_outside_a_plane_are_an_error_and_no_read_outside_it(compiled):
    planes, labels = settled(2)
    rows, columns = taps(13, 13), taps(37, 37)
    columns[1][5] = 10**9
    with pytest.raises(IndexError):
        compiled.between(planes, labels, 0.5, rows, columns, np.zeros((13, 37), np.uint8))
    slab, counts = np.zeros((4, 2, 5, 6), np.float32), np.zeros((4, 5, 6), np.float32)
    with pytest.raises(ValueError, match="broadcast"):
        compiled.blend(slab, counts, np.zeros((4, 2, 5, 7), np.float32), np.zeros((4, 5, 7), np.float32), 0)


def test_compiled_loops_are_cached_in_their_own_folder_and_others_keep_theirs(compiled, monkeypatch, tmp_path):
    import numba

    monkeypatch.setattr(compiled, "FOLDER", tmp_path / "kernels")
    before = numba.config.CACHE_DIR
    loop = compiled._compiled((numba.types.int64,))(_double)
    assert loop(4) == 8
    assert list((tmp_path / "kernels").glob("*/*.nbc"))
    assert before == numba.config.CACHE_DIR


def test_without_a_folder_to_write_to_loops_are_compiled_all_the_same(compiled, monkeypatch, tmp_path):
    import numba

    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(compiled, "FOLDER", tmp_path / "file" / "kernels")
    assert compiled._compiled((numba.types.int64,))(_double)(4) == 8
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]


def _double(number):
    return number * 2


# Host


def test_the_first_call_does_not_wait_for_the_compiler_and_gives_the_same_bits(compiled, loops, monkeypatch):
    ready = threading.Event()

    def slow_import(name):
        assert name == "medseg.kernels.compiled"
        ready.wait()
        return compiled

    monkeypatch.setattr(host.importlib, "import_module", slow_import)
    place, (planes, labels) = Host(2), settled(5)
    place.expect(1e12)
    results = []
    for expected in (plain, compiled):
        assert loops.module is expected
        out = np.zeros((20, 50), np.uint8)
        place.between(planes, labels, 0.4, taps(13, 20), taps(37, 50), out)
        results.append(out)
        ready.set()
        loops._thread.join()
    assert same_bits(*results)


def test_little_work_starts_no_compiler_and_loading_pays_sooner_than_compiling(loops, monkeypatch, tmp_path):
    monkeypatch.setattr(host, "FOLDER", tmp_path)
    monkeypatch.setattr(host, "find_spec", lambda name: name == "numba")
    monkeypatch.setattr(loops, "compile", lambda: True)
    Host(1).expect(1e8)
    assert loops._thread is None
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "loop.nbc").write_bytes(b"")
    Host(1).expect(1e7)
    assert loops._thread is None
    Host(1).expect(1e8)
    assert not loops._thread.daemon  # it is not to be torn from the compiler when the process ends
    first = loops._thread
    Host(1).expect(1e12)
    assert loops._thread is first


def test_without_numba_the_plain_loops_are_used(loops, monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    Host(1).expect(1e15)
    assert loops._thread is None
    assert compile_now() is False
    test_blending_adds_weighted_logits_and_weights()


def test_a_broken_numba_does_not_stop_anything(loops, monkeypatch):
    def broken(name):
        raise ImportError("Numba needs NumPy 1.2 or less")

    monkeypatch.setattr(host.importlib, "import_module", broken)
    assert compile_now() is False
    assert loops.module is plain


def test_compiling_before_going_on_makes_the_loops_ready(compiled, loops):
    assert compile_now() is True
    assert loops.module is compiled


def test_the_room_itself_imports_neither_torch_nor_numba():
    code = "import sys, medseg.kernels; medseg.kernels.Host().expect(1e6); print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numba", "scipy"} & set(shown)


@pytest.mark.parametrize("threads", [1, 3])
def test_each_item_is_worked_on_once_and_an_error_comes_up(threads):
    place, seen = Host(threads), []
    place.each(seen.append, range(50))
    assert sorted(seen) == list(range(50))

    def fail(item):
        if item == 3:
            raise ZeroDivisionError
        time.sleep(0.005)
        seen.append(item)

    with pytest.raises(ZeroDivisionError):
        place.each(fail, range(500))
    count = len(seen)
    assert count < 100  # the rest was left undone
    time.sleep(0.02)
    assert len(seen) == count  # and nothing goes on behind


@pytest.mark.skipif(sys.platform == "win32", reason="has no kill()")
def test_an_interrupt_ends_the_work_at_once():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets its background jobs ignore it
    place, started = Host(2), time.monotonic()
    timer = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT))
    gc.collect()
    gc.disable()  # Python swallows an interrupt that comes while it calls back for what is collected
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            place.each(lambda _: time.sleep(0.02), range(1000))
    finally:
        gc.enable()
        timer.join()
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 5  # all items take ten seconds


def test_a_host_takes_the_cores_it_may_use(monkeypatch):
    assert 1 <= Host().threads <= os.cpu_count()
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.setattr(host.sys, "version_info", (3, 11))
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert Host().threads == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert Host().threads == 1


# Device


@pytest.mark.parametrize("channels", CHANNELS)
def test_a_device_gives_the_bits_of_the_host(channels):
    import torch

    from medseg.kernels.device import Device

    kind = np.uint8 if channels <= 256 else np.uint16
    answer = rng().normal(size=(channels, 6, 9, 8)).astype(np.float32).transpose(3, 0, 1, 2)
    weights = rng(1).random((8, 6, 9), dtype=np.float32)
    results = []
    for place in (Host(1), Device(torch.device("cpu"))):
        slab, counts = place.zeros((8, channels, 12, 15)), place.zeros((8, 12, 15))
        labels, out = place.zeros((8, 12, 15), kind), place.zeros((17, 25), kind)
        given = torch.from_numpy(answer) if isinstance(place, Device) else answer
        for row, column in ((0, 0), (2, 5), (4, 6)):
            part = slice(row, row + 6), slice(column, column + 9)
            place.blend(slab[:, :, part[0], part[1]], counts[:, part[0], part[1]], given, place.put(weights), 3)

        def settle(at, place=place, planes=(slab, counts, labels)):
            place.settle(planes[0][at], planes[1][at], planes[2][at], channels)

        place.each(settle, range(8))
        rows, columns = (tuple(map(place.put, taps(*sizes))) for sizes in ((12, 17), (15, 25)))
        place.between((slab[3], slab[4]), (labels[3], labels[4]), 0.3, rows, columns, out)
        values = plain.plane_between((slab[3], slab[4]), 0.3, rows, columns)
        results.append([place.get(array) for array in (slab, counts, labels, out, values)])
    assert all(same_bits(np.ascontiguousarray(a), np.ascontiguousarray(b)) for a, b in zip(*results, strict=True))
    assert results[0][3].max() > 0 or channels == 1


def test_a_device_takes_what_torch_does_not_share():
    import torch

    from medseg.kernels.device import Device

    place = Device(torch.device("cpu"))
    array = np.arange(12, dtype=np.uint16).reshape(3, 4)
    frozen = np.arange(3.0)
    frozen.flags.writeable = False
    assert same_bits(place.get(place.put(array[::-1])), np.ascontiguousarray(array[::-1]))
    assert place.get(place.put(frozen)).tolist() == [0, 1, 2]
    assert place.get(place.zeros((2, 2), np.uint16)).dtype == np.uint16
    assert place.get(place.zeros((2, 2), np.uint8)).dtype == np.uint8
    assert place.get(place.put(array)).max() == 11

"""The pass: equal to MONAI and full-size resampling, in any number of strips, within memory, and again with less."""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import CARD, PLAN, random_bundle, smooth_scan
from monai.inferers import sliding_window_inference
from torch.nn import functional

from medseg.bundle import Bundle
from medseg.errors import DeviceError, MemoryLimit, PlanError, UsageError
from medseg.geometry import Geometry
from medseg.inference import Predictor, load_network, memory
from medseg.inference.backends import How
from medseg.inference.engine import Pass
from medseg.inference.memory import Need, in_words, parse_bytes, taken_by
from medseg.inference.stage import Stage, is_out_of_memory
from medseg.inference.windows import Windows
from medseg.kernels import Host
from medseg.plan import Plan
from medseg.prepare import Prepared, Rescale, prepare
from medseg.volume import Volume


class Fake:
    """A backend that gives the values of the scan, with a pattern for each channel; fails as often as it is told."""

    name, batch = "fake", 2

    def __init__(self, channels=3, place=None, errors=()):
        self.channels, self.place, self.errors = channels, place or Host(1), list(errors)
        self.calls = self.freed = 0

    def __call__(self, windows):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        waves = [np.sin(windows[:, 0] * (number + 1) + number) for number in range(self.channels)]
        return np.stack(waves, axis=1).astype(np.float32)

    def taken(self, windows):
        return self(windows).nbytes

    def room(self):
        return None

    def free(self):
        self.freed += 1


def plan_of(labels=2, **changes):
    table = [{"value": number + 1, "name": f"label {number}"} for number in range(labels)]
    return Plan.parse({**PLAN, "labels": table, **changes})


def prepared_as_it_is(scan):
    return Prepared(scan, (Rescale(-1e9, 1e9, 0.0, 100.0),))


def stage_of(backend, **changes):
    """A stage whose backend is replaced."""
    stage = Stage(random_bundle(**changes), How("cpu", "torch"), Host(1))
    stage.backend = backend
    return stage


@pytest.mark.parametrize("labels", [1, 2, 14, 117, 300])
@pytest.mark.parametrize("patch", [(16, 16, 16), (8, 24, 16), (64, 64, 64)])
@pytest.mark.parametrize("shape", [(20, 24, 18), (33, 9, 40)])
def test_labels_are_those_of_monai_and_full_size_resampling(labels, patch, shape):
    names = [{"value": number + 1, "name": f"label {number}"} for number in range(labels)]
    bundle = random_bundle(seed=labels, labels=names, patch=patch)
    grid = Geometry(np.eye(4), shape)
    affine = np.diag([*(n / (2 * n - 1) for n in shape), 1.0])
    affine[:3, 3] = [(n / (2 * n - 1) - 1) / 2 for n in shape]
    onto = Geometry(affine, tuple(2 * n - 1 for n in shape))
    scan = smooth_scan(shape)
    prepared = prepare(Volume(scan.array, grid), bundle.plan)
    stage = Stage(bundle, How("cpu", "torch"), Host(2))
    found = stage.run(prepared, onto).restorer.labels
    with torch.inference_mode():
        logits = sliding_window_inference(
            torch.from_numpy(prepared.array())[None], patch, 1, load_network(bundle), overlap=0.5, mode="gaussian"
        )
        full = functional.interpolate(logits, onto.shape, mode="trilinear", align_corners=False)[0]
    best = full.topk(2, dim=0)
    clear = ((best.values[0] - best.values[1]) > 1e-4).numpy()
    assert clear.mean() > 0.9
    assert np.array_equal(found[clear], best.indices[0].numpy()[clear])


@pytest.mark.parametrize("strips", [2, 3, 7, 50])
@pytest.mark.parametrize("shape", [(40, 30, 20), (20, 40, 30), (30, 20, 40)])
def test_strips_change_nothing_but_how_often_windows_are_answered(strips, shape):
    scan = smooth_scan(shape)
    prepared = prepared_as_it_is(scan)
    onto = scan.geometry.respaced((0.7, 1.3, 0.9))
    windows = Windows.over(shape, (16, 16, 16), 0.5)
    plan = plan_of()
    whole = Pass(prepared, onto, plan, Fake(), windows=windows, probabilities=True)
    wanted = whole.run()
    parts = Pass(prepared, onto, plan, Fake(), windows=windows, probabilities=True)
    found = parts.run(strips)
    assert len(np.unique(wanted.labels)) == 3
    assert np.array_equal(found.labels, wanted.labels)
    assert np.array_equal(found.probabilities, wanted.probabilities)
    assert whole.answered == len(windows) < parts.answered


def test_planes_are_held_along_the_axis_that_keeps_the_fewest_waiting():
    assert Windows.over((100, 50, 50), (16, 16, 16), 0.5).axes == (0, 1, 2)
    assert Windows.over((50, 100, 50), (16, 16, 16), 0.5).axes == (1, 0, 2)
    assert Windows.over((50, 50, 100), (16, 16, 16), 0.5).axes == (2, 0, 1)
    assert Windows.over((50, 50, 100), (16, 16, 64), 0.5).axes == (0, 1, 2)
    assert Windows.over((50, 50, 100), (16, 16, 16), 0.5).depth == 16


def test_only_a_slab_of_logits_lives_at_a_time(monkeypatch):
    asked = []

    class Counting(Host):
        def zeros(self, shape, dtype=np.float32):
            asked.append(int(np.prod(shape)) * np.dtype(dtype).itemsize)
            return super().zeros(shape, dtype)

    scan = smooth_scan((24, 24, 200))
    backend = Fake(30, Counting(1))
    windows = Windows.over(scan.geometry.shape, (16, 16, 16), 0.5)
    Pass(prepared_as_it_is(scan), scan.geometry, plan_of(29), backend, windows=windows).run()
    assert max(asked) == 16 * 24 * 24 * 30 * 4  # planes of one window, and no more of the 200


def test_windows_that_hold_only_air_are_skipped_and_counted():
    scan = smooth_scan((60, 20, 20))
    array = np.abs(scan.array) + 50
    array[:, 20:] = 0
    scan = Volume(array, scan.geometry)
    plan = plan_of(crop=10.0)
    windows = Windows.over((60, 20, 20), (16, 16, 16), 0.5)
    job = Pass(prepared_as_it_is(scan), scan.geometry, plan, Fake(), windows=windows)
    labels = job.run().labels
    in_tissue = sum(start < 20 for start in windows.starts[0]) * len(windows) // len(windows.starts[0])
    assert (job.answered, job.air) == (in_tissue, len(windows) - in_tissue)
    everything = Pass(prepared_as_it_is(scan), scan.geometry, plan_of(), Fake(), windows=windows)
    assert np.array_equal(everything.run().labels[:20], labels[:20])
    assert everything.air == 0
    assert not labels[max(start for start in windows.starts[0] if start < 20) + 16 :].any()


def test_where_no_window_looked_background_is_certain_at_any_temperature():
    array = np.zeros((1, 40, 16, 16), np.float32)
    array[:, 30:] = 100
    scan = Volume(array, Geometry(np.eye(4), (40, 16, 16)))
    plan = plan_of(14, crop=50.0, patch=[8, 16, 16])
    windows = Windows.over((40, 16, 16), (8, 16, 16), 0.0)
    job = Pass(
        prepared_as_it_is(scan), scan.geometry, plan, Fake(15), windows=windows, probabilities=True, temperature=4.0
    )
    found = job.run().probabilities
    assert job.air == 3
    assert (found[0, :24] == 1).all()
    assert not found[1:, :24].any()
    assert found[0, 25:].max() < 0.9


def test_two_threads_take_turns():
    scans = [smooth_scan((20, 18, 16), seed=seed) for seed in range(6)]
    predictor = Predictor(random_bundle(), device="cpu", backend="torch")
    wanted = [predictor(scan).labels.array for scan in scans]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda scan: predictor(scan).labels.array, scans))
    assert all(np.array_equal(a, b) for a, b in zip(wanted, found, strict=True))


def test_a_scan_of_nothing_but_air_is_background():
    scan = Volume(np.zeros((1, 20, 20, 20), np.int16), Geometry(np.eye(4), (20, 20, 20)))
    windows = Windows.over((20, 20, 20), (16, 16, 16), 0.5)
    job = Pass(prepared_as_it_is(scan), scan.geometry, plan_of(crop=10.0), Fake(), windows=windows, probabilities=True)
    restored = job.run()
    assert not restored.labels.any()
    assert (restored.probabilities[0] == 1).all()
    assert (job.answered, job.air) == (0, len(windows))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value):
    class Broken(Fake):
        def __call__(self, windows):
            answer = super().__call__(windows)
            answer[0, 1, 3, 3, 3] = value
            return answer

    scan = smooth_scan()
    windows = Windows.over(scan.geometry.shape, (16, 16, 16), 0.5)
    with pytest.raises(DeviceError, match="not finite"):
        Pass(prepared_as_it_is(scan), scan.geometry, plan_of(), Broken(), windows=windows).run()


def test_a_network_that_shrinks_its_input_is_refused():
    class Small(Fake):
        def __call__(self, windows):
            return super().__call__(windows)[..., 1:-1]

    scan = smooth_scan()
    windows = Windows.over(scan.geometry.shape, (16, 16, 16), 0.5)
    with pytest.raises(PlanError, match="16, 16, 14"):
        Pass(prepared_as_it_is(scan), scan.geometry, plan_of(), Small(), windows=windows).run()


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        ([MemoryError()], ["smaller slab"]),
        ([RuntimeError("CUDA out of memory. Tried to allocate")], ["smaller slab"]),
        ([MemoryError(), MemoryError()], ["smaller slab", "one window at a time"]),
    ],
)
def test_out_of_memory_is_answered_with_less_and_said(errors, said):
    scan = smooth_scan((40, 30, 20))
    prepared = prepared_as_it_is(scan)
    wanted = stage_of(Fake()).run(prepared, scan.geometry).restorer.labels
    backend = Fake()
    stage = stage_of(backend)
    backend.errors = errors.copy()
    job = stage.run(prepared, scan.geometry)
    assert np.array_equal(job.restorer.labels, wanted)
    assert len(job.notes) == len(said) == backend.freed
    assert all(words in note for words, note in zip(said, job.notes, strict=True))
    assert backend.batch == 2  # the next scan gets its chance
    assert stage.run(prepared, scan.geometry).notes == []


def test_a_device_without_memory_hands_over_to_the_cpu():
    class Card:
        """A place that is not the host's own."""

        def __init__(self):
            self.host = Host(1)

        def __getattr__(self, name):
            return getattr(self.host, name)

    scan = smooth_scan()
    bundle = random_bundle(seed=1)
    wanted = Predictor(bundle, device="cpu", backend="torch")(scan).labels.array
    predictor = Predictor(bundle, device="cpu", backend="torch")
    card = Fake(place=Card())
    card.errors = [MemoryError()] * 9
    card.room = lambda: 1 << 40
    predictor._stage.backend = card
    found = predictor(scan)
    assert np.array_equal(found.labels.array, wanted)
    assert "the CPU" in found.notes[-1]
    assert found.backend == "torch, float32, cpu"
    card.errors = []
    again = predictor(scan)
    assert again.backend == "fake"
    assert again.notes == found.notes[:1] * bool(predictor.advice)
    assert again.seconds["blend"] == 0 < again.seconds["network"]  # a device works on while the host goes ahead


def test_memory_that_is_never_enough_ends_in_one_line():
    scan = smooth_scan()
    backend = Fake()
    stage = stage_of(backend)
    backend.errors = [MemoryError()] * 9
    with pytest.raises(MemoryLimit, match="ran out of memory"):
        stage.run(prepared_as_it_is(scan), scan.geometry)


def test_a_bug_is_not_taken_for_a_lack_of_memory():
    scan = smooth_scan()
    backend = Fake()
    stage = stage_of(backend)
    backend.errors = [RuntimeError("sizes do not match")]
    with pytest.raises(RuntimeError, match="sizes do not match"):
        stage.run(prepared_as_it_is(scan), scan.geometry)
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes"))


def test_a_limit_below_the_need_is_refused_before_any_window():
    predictor = Predictor(random_bundle(), device="cpu", backend="torch", memory=1_000_000)
    with pytest.raises(MemoryLimit, match=r"needs at least 1 MB of memory beside the .* in use, and may take 0 MB"):
        predictor(smooth_scan())
    backend = Fake()
    with pytest.raises(MemoryLimit):
        stage_of(backend).run(prepared_as_it_is(smooth_scan()), smooth_scan().geometry, memory=1_000_000)
    assert backend.calls == 0


def test_what_the_backend_takes_counts_where_memory_is_tight(monkeypatch):
    scan = smooth_scan()
    monkeypatch.setattr("medseg.inference.stage.available", lambda: 10**9)
    backend = Fake()
    backend.taken = lambda windows: 2 * 10**9
    assert stage_of(backend).run(prepared_as_it_is(scan), scan.geometry)  # there is plenty: it is not asked
    with pytest.raises(MemoryLimit, match=r"2\.0 GB"):
        stage_of(backend).run(prepared_as_it_is(scan), scan.geometry, memory=1 << 50)
    assert backend.freed == 1  # asked to keep as little as possible


def test_host_and_device_each_have_their_limit():
    windows = Windows.over((200, 100, 100), (16, 16, 16), 0.5)
    need = Need(windows, channels=10, voxels=2_000_000, shares=10)
    assert need.strips_within(host=90_000_000, device=9_000_000) == 1
    assert need.strips_within(host=90_000_000, device=4_000_000) > 1
    with pytest.raises(MemoryLimit, match="82 MB of memory beside"):
        need.strips_within(host=80_000_000, device=1 << 40)
    with pytest.raises(MemoryLimit, match="memory of the device"):
        need.strips_within(host=1 << 40, device=100_000)


def test_a_device_is_not_filled_with_what_the_host_keeps():
    backend = Fake()
    backend.room = lambda: 1_000_000  # too little for the probabilities, enough for slab and windows
    scan = smooth_scan((60, 60, 60))
    job = stage_of(backend).run(prepared_as_it_is(scan), scan.geometry, probabilities=True)
    assert job.restorer.probabilities.nbytes > 2_000_000


def test_what_a_call_takes_is_seen_while_it_lasts():
    def call():
        block = np.ones(20_000_000)
        time.sleep(0.05)
        return block[:10]

    assert 150e6 < taken_by(call) < 250e6
    assert taken_by(lambda: np.ones(1_000_000, np.float32)) >= 4_000_000
    with pytest.raises(KeyError):
        taken_by(lambda: {}["no"])


def test_the_cache_of_files_of_a_container_counts_as_free(tmp_path, monkeypatch):
    group = tmp_path / "system.slice" / "job"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("1000000\n")
    (group / "memory.current").write_text("900000\n")
    (group / "memory.stat").write_text("anon 1\nfile 2\ninactive_file 300000\n")
    (tmp_path / "system.slice" / "memory.max").write_text("max\n")
    own = tmp_path / "cgroup"
    own.write_text("0::/system.slice/job\n")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN", own)
    assert memory.available() == 400_000


def test_less_memory_means_more_strips_and_the_same_labels():
    windows = Windows.over((200, 100, 100), (16, 16, 16), 0.5)
    need = Need(windows, channels=10, voxels=2_000_000, working=1_000_000)
    assert need.strips_within(1 << 40) == 1
    assert need.beside(1) == 100 * 100 * 17 * 46 + 1_000_000
    assert need.on_host == 2_000_000
    counts = [need.strips_within(limit) for limit in (9_000_000, 6_000_000, 4_500_000)]
    assert counts == sorted(counts)
    assert counts[0] > 1
    with pytest.raises(MemoryLimit, match=r"3\.\d MB|3 MB"):
        need.strips_within(2_000_000)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("4GB", 4e9), ("1.5 GiB", 1.5 * 2**30), ("800m", 8e8), ("123", 123), ("2 kb", 2000), ("1TiB", 2**40)],
)
def test_amounts_of_memory_are_read(text, wanted):
    assert parse_bytes(text) == wanted


@pytest.mark.parametrize("text", ["", "GB", "-4GB", "0", "4 potatoes", "4GBB", "1e9", "i"])
def test_what_is_no_amount_of_memory_is_refused(text):
    with pytest.raises(UsageError, match="no amount of memory"):
        parse_bytes(text)


def test_amounts_of_memory_are_said():
    assert in_words(3.21e9) == "3.2 GB"
    assert in_words(45e6) == "45 MB"


def two_stages(**coarse):
    first = Plan.parse({**PLAN, "spacing": [3.0, 3.0, 3.0], "labels": [{"value": 1, "name": "there"}], **coarse})
    plan = Plan.parse({**PLAN, "locate": {"plan": first.model_dump(), "margin_mm": 4.0}})
    one = random_bundle()
    coarse_weights = random_bundle(labels=[{"value": 1, "name": "there"}]).members[0]
    return Bundle.of(one.members, plan=plan, card=CARD, locator=coarse_weights)


def test_a_first_stage_finds_where_the_second_looks(tmp_path):
    scan = smooth_scan((60, 50, 40))
    array = np.zeros_like(scan.array)
    array[:, 30:45, 20:32, 10:22] = 100.0
    scan = Volume(array, scan.geometry)
    two_stages().save(tmp_path / "two.safetensors")
    predictor = Predictor.load(tmp_path / "two.safetensors", device="cpu", backend="torch")

    class Bright(Fake):
        def __call__(self, windows):
            return np.stack([np.full_like(windows[:, 0], 0.5), windows[:, 0]], axis=1)

    predictor._locator.backend = Bright()
    seen = []

    class Seen(Fake):
        def __call__(self, windows):
            seen.append(windows.shape)
            return super().__call__(windows)

    predictor._stage.backend = Seen()
    found = predictor(scan)
    size = found.prepared.geometry.shape
    assert all(a <= n <= a + 14 for n, a in zip(size, (15, 12, 12), strict=True))
    low, high = found.prepared.geometry.to_world(np.array([[0, 0, 0], np.array(size) - 1]))
    assert (low <= (30, 20, 10)).all()
    assert (high >= (44, 31, 21)).all()
    assert found.labels.array.shape == (60, 50, 40)
    assert not found.labels.array[:20].any()
    assert "locate" in found.seconds
    assert seen


def test_where_the_first_stage_finds_nothing_the_second_looks_everywhere_and_it_is_said():
    predictor = Predictor(two_stages(), device="cpu", backend="torch")

    class Nothing(Fake):
        def __call__(self, windows):
            super().__call__(windows)
            return np.stack([np.ones_like(windows[:, 0]), np.zeros_like(windows[:, 0])], axis=1)

    predictor._locator.backend = Nothing(errors=[MemoryError()])
    found = predictor(smooth_scan((30, 30, 30)))
    assert found.prepared.geometry.shape == (30, 30, 30)
    assert any("found nothing" in note for note in found.notes)
    assert any("a smaller slab" in note for note in found.notes)


def test_two_stages_are_checked(tmp_path):
    bundle = two_stages()
    path = tmp_path / "two.safetensors"
    bundle.save(path)
    again = Bundle.load(path)
    assert again.stage_that_locates().plan.labels[0].name == "there"
    assert random_bundle().stage_that_locates() is None
    dataclasses.replace(bundle, locator=None).save(path)
    with pytest.raises(Exception, match="lacks the weights of a stage that locates"):
        Bundle.load(path)
    nested = {**PLAN, "locate": {"plan": bundle.plan.model_dump(), "margin_mm": 1.0}}
    with pytest.raises(PlanError, match="none that locates for it"):
        Plan.parse(nested)


def test_the_overlap_can_be_chosen_and_nonsense_is_refused():
    scan = smooth_scan((40, 40, 40))
    counts = [
        Predictor(random_bundle(), device="cpu", backend="torch", overlap=overlap)(scan).windows["answered"]
        for overlap in (0.0, 0.25, 0.5)
    ]
    assert counts == [27, 27, 64]
    with pytest.raises(UsageError, match=r"not in \[0, 1\)"):
        Predictor(random_bundle(), device="cpu", overlap=1.0)


def test_mirrored_views_are_averaged_where_the_model_knows_them():
    scan = smooth_scan((16, 16, 16))
    bundle = random_bundle(mirror=[0, 2])
    x = torch.from_numpy(prepare(scan, bundle.plan).array())[None]
    network = load_network(bundle)
    with torch.inference_mode():
        views = [network(x.flip(flips)).flip(flips) if flips else network(x) for flips in ([], [2], [4], [2, 4])]
    wanted = (sum(views) / 4)[0].argmax(0).numpy()
    found = Predictor(bundle, device="cpu", backend="torch", mirror=True)(scan)
    assert np.array_equal(found.labels.array, wanted)
    with pytest.raises(UsageError, match="not trained on mirrored scans"):
        Predictor(random_bundle(), device="cpu", mirror=True)


@pytest.mark.parametrize("words", [{"backend": "nonsense"}, {"precision": "float99", "backend": "torch"}])
def test_backends_and_precisions_that_do_not_exist_are_refused(words):
    with pytest.raises((UsageError, DeviceError), match=r"nonsense|float99"):
        Predictor(random_bundle(), device="cpu", **words)


@pytest.mark.parametrize("size", [(40, 40, 40), (8, 8, 8)])
def test_an_estimate_counts_the_windows_and_keeps_the_scan(size):
    predictor = Predictor(random_bundle(), device="cpu", backend="torch")
    scan = smooth_scan(size)
    found = predictor.estimate(scan)
    assert found.windows == predictor(scan).windows
    assert set(found.seconds) == {"prepare", "network", "blend", "restore"}
    assert found.host > scan.array[0].size
    assert found.strips == 1
    with pytest.raises(MemoryLimit):
        Predictor(random_bundle(), device="cpu", backend="torch", memory=1000).estimate(scan)

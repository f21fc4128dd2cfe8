"""Inference against MONAI, windows by hand, and one answer for one anatomy however it is stored."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import ORDERS, PLAN, random_bundle, rotation, smooth_scan
from monai.inferers import sliding_window_inference

import medseg
from medseg.errors import DeviceError
from medseg.geometry import Geometry
from medseg.inference import Predictor, gaussian_weights, load_network, window_starts
from medseg.inference.backends import How
from medseg.inference.backends.choice import open_backend
from medseg.inference.device import choose
from medseg.inference.engine import Pass
from medseg.inference.windows import Windows
from medseg.kernels import Host
from medseg.plan import Plan
from medseg.prepare import prepare
from medseg.volume import LabelMap, Volume


@pytest.mark.parametrize(
    ("size", "patch", "overlap", "starts"),
    [
        (10, 4, 0.5, [0, 2, 4, 6]),
        (11, 4, 0.5, [0, 2, 4, 6, 7]),
        (4, 4, 0.5, [0]),
        (3, 4, 0.5, [0]),
        (3, 5, 0.5, [-1]),
        (9, 4, 0.0, [0, 4, 5]),
        (6, 2, 0.9, [0, 1, 2, 3, 4]),
        (5, 1, 0.5, [0, 1, 2, 3, 4]),
    ],
)
def test_windows_begin_where_they_should(size, patch, overlap, starts):
    assert window_starts(size, patch, overlap) == starts


def test_weights_are_largest_in_the_middle_and_never_vanish():
    weights = gaussian_weights((9, 16, 1))
    assert weights.shape == (9, 16, 1)
    assert weights[4, 7:9, 0].max() == weights.max()
    assert weights.min() == pytest.approx(1e-3)


def blended(bundle, prepared, *, overlap=0.5, batch=1, strips=1):
    """Return the mean logits (L, I, J, K) of a pass, gathered from its planes."""
    backend = open_backend(bundle, How("cpu", "torch"), Host(1))[0]
    backend.batch = batch
    shape = prepared.geometry.shape
    windows = Windows.over(shape, bundle.plan.patch, overlap)
    turned = np.full((len(bundle.plan.atoms) + 1, *(shape[axis] for axis in windows.axes)), np.nan, np.float32)

    def watch(strip, first, planes):
        for number, (plane, _) in enumerate(planes, start=first):
            turned[:, number, slice(*strip.rows)] = plane

    job = Pass(prepared, prepared.geometry, bundle.plan, backend, windows=windows)
    job.run(strips, watch=watch)
    assert job.answered >= len(windows)
    logits = turned.transpose(0, *(1 + windows.axes.index(axis) for axis in range(3)))
    assert np.array_equal(job.restorer.labels, logits.argmax(axis=0))
    return logits


@pytest.mark.parametrize("shape", [(20, 24, 18), (33, 17, 16), (9, 30, 12), (16, 16, 16), (5, 6, 7), (18, 15, 60)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize(("batch", "strips"), [(1, 1), (3, 1), (1, 2), (2, 5)])
def test_the_sliding_window_is_that_of_monai(shape, overlap, batch, strips):
    bundle = random_bundle(seed=3)
    prepared = prepare(smooth_scan(shape), bundle.plan)
    patch = bundle.plan.patch
    ours = blended(bundle, prepared, overlap=overlap, batch=batch, strips=strips)
    with torch.inference_mode():
        theirs = sliding_window_inference(
            torch.from_numpy(prepared.array())[None], patch, 1, load_network(bundle), overlap=overlap, mode="gaussian"
        )[0].numpy()
    assert np.abs(ours - theirs).max() < 1e-4
    two_best = np.sort(theirs, axis=0)[-2:]
    clear = two_best[1] - two_best[0] > 1e-4
    assert clear.mean() > 0.9
    assert np.array_equal(ours.argmax(0)[clear], theirs.argmax(0)[clear])


@pytest.mark.parametrize("shape", [(40, 24, 1), (9, 50, 3)])
def test_a_2d_network_sees_slice_after_slice(shape):
    bundle = random_bundle(axes=2, patch=[16, 32, 1])
    prepared = prepare(smooth_scan(shape), bundle.plan)
    ours = blended(bundle, prepared, batch=2)
    slices = torch.from_numpy(prepared.array()).permute(3, 0, 1, 2)
    with torch.inference_mode():
        theirs = sliding_window_inference(slices, (16, 32), 1, load_network(bundle), overlap=0.5, mode="gaussian")
    assert np.abs(ours - theirs.permute(1, 2, 3, 0).numpy()).max() < 1e-4


@pytest.mark.parametrize("spacing", [None, [1.5, 1.5, 1.5]])
def test_one_anatomy_gives_one_label_map_in_all_48_stored_orders(spacing):
    affine = np.eye(4)
    affine[:3, :3] = rotation(8) * (1.0, 1.2, 2.0)
    affine[:3, 3] = (3, -40, 17)
    scan = Volume(smooth_scan((17, 20, 13), dtype=np.int16).array, Geometry(affine, (17, 20, 13)))
    predictor = Predictor(random_bundle(seed=1, spacing=spacing), device="cpu")
    wanted = predictor(scan).labels
    assert len(np.unique(wanted.array)) > 1
    for order in ORDERS:
        stored = Volume(np.ascontiguousarray(order.apply(scan.array)), scan.geometry.reordered(order))
        found = predictor(stored).labels
        assert np.array_equal(found.array, order.apply(wanted.array))
        assert found.geometry is stored.geometry


def test_labels_have_the_values_of_the_plan():
    labels = [{"value": 5, "name": "front"}, {"value": 300, "name": "back"}]
    found = Predictor(random_bundle(seed=1, labels=labels), device="cpu")(smooth_scan()).labels
    assert {0, 5, 300} >= set(np.unique(found.array)) > {0}
    assert found.array.dtype == np.uint16
    assert sum(found.counts().values()) == (found.array > 0).sum()


def test_probabilities_sum_to_one_and_agree_with_the_labels():
    prediction = Predictor(random_bundle(seed=1), device="cpu")(smooth_scan(), probabilities=True)
    shares = prediction.probabilities.array
    assert np.allclose(shares.sum(axis=0), 1, atol=1e-5)
    assert (shares.argmax(axis=0) == prediction.labels.array).mean() > 0.9999


def test_an_ensemble_answers_with_the_mean_of_its_members():
    scan = smooth_scan((16, 16, 16))
    both = Predictor(random_bundle(members=2), device="cpu")
    x = torch.from_numpy(prepare(scan, both.bundle.plan).array())[None]
    with torch.inference_mode():
        mean = (load_network(both.bundle, 0)(x) + load_network(both.bundle, 1)(x)) / 2
    assert np.array_equal(both(scan).labels.array, mean[0].argmax(0).numpy())


def test_only_the_largest_piece_is_kept_where_the_plan_says_so():
    plan_says = {"largest_component": ["front", "back"]}
    scan = smooth_scan()
    free = Predictor(random_bundle(seed=1), device="cpu")(scan)
    kept = Predictor(random_bundle(seed=1, **plan_says), device="cpu")(scan)
    assert free.removed == {}
    assert set(kept.removed) == {name for name, count in free.labels.counts().items() if count} != set()
    for name, share in kept.removed.items():
        before, after = free.labels.mask(name).sum(), kept.labels.mask(name).sum()
        assert share == pytest.approx(1 - after / before)


def test_progress_is_told_in_order():
    said = []
    Predictor(random_bundle(), device="cpu")(smooth_scan(), progress=lambda stage, done: said.append((stage, done)))
    assert list(dict.fromkeys(stage for stage, _ in said)) == ["prepare", "network", "clean"]
    assert all(one[1] <= two[1] for one, two in pairwise(said) if one[0] == two[0])
    assert said[-1] == ("clean", 1.0)


def test_the_same_scan_gives_the_same_bytes_again():
    predictor = Predictor(random_bundle(), device="cpu")
    first = predictor(smooth_scan()).labels.array.tobytes()
    assert all(predictor(smooth_scan()).labels.array.tobytes() == first for _ in range(3))


@pytest.mark.parametrize("name", ["cuda:99", "nonsense", "xpu"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(DeviceError, match=name):
        choose(name)


def test_a_device_is_chosen_by_itself():
    assert choose("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_cuda_and_cpu_agree():
    bundle = random_bundle(seed=3)
    cpu, cuda = (Predictor(bundle, device=name)(smooth_scan()).labels.array for name in ("cpu", "cuda"))
    assert (cpu == cuda).mean() > 0.999


def test_threads_are_set():
    before = torch.get_num_threads()
    try:
        Predictor(random_bundle(), device="cpu", threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_the_face_of_the_package_is_enough(sample, tmp_path):
    labels = medseg.Predictor.load("hippocampus-t1", device="cpu")(medseg.read(sample)).labels
    assert isinstance(labels, LabelMap)
    medseg.write(labels, tmp_path / "out.nii.gz")
    assert medseg.read_labels(tmp_path / "out.nii.gz").geometry.same_as(labels.geometry)


def test_plans_of_other_orientations_give_labels_on_the_scans_own_grid():
    scan = smooth_scan((17, 20, 13))
    plan = Plan.parse({**PLAN, "orientation": "SLP"})
    assert prepare(scan, plan).geometry.orientation == "SLP"
    labels = Predictor(random_bundle(orientation="SLP"), device="cpu")(scan).labels
    assert labels.array.shape == (17, 20, 13)

"""How sure the network is: maps, soft and expected Dice, calibration, and what the quality check makes of them."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import CARD, PLAN, random_bundle, smooth_scan
from scipy import ndimage, stats

import medseg
from medseg.bundle import Bundle
from medseg.errors import BundleError, PlanError, UsageError
from medseg.geometry import Geometry
from medseg.inference import Predictor, load_network
from medseg.inference.backends import How
from medseg.inference.calibration import TEMPERATURES, Evidence, Witness, expected_dice, fit
from medseg.inference.engine import Pass
from medseg.inference.stage import Stage
from medseg.inference.uncertainty import Doubt, joint, lead, soft_dice
from medseg.inference.windows import Windows
from medseg.kernels import Host
from medseg.kernels.device import Device
from medseg.metrics import dice
from medseg.plan import Calibration, DiceLine, Plan
from medseg.prepare import Prepared, Rescale
from medseg.qc import low_confidence
from medseg.restore import softmax
from medseg.volume import LabelMap, Volume

RNG = np.random.default_rng


def plan_of(labels=2, **changes):
    table = [{"value": number + 1, "name": f"label {number + 1}"} for number in range(labels)]
    return Plan.parse({**PLAN, "labels": table, **changes})


class Waves:
    """A backend whose logits are waves of the scan, one for each channel; with a ramp as a last channel if asked."""

    name, batch = "waves", 2

    def __init__(self, place=None, *, channels=3, steep=3.0, extra=False):
        self.place, self.channels, self.steep, self.extra = place or Host(1), channels, steep, extra

    def __call__(self, windows):
        waves = [self.steep * np.sin(windows[:, 0] * (n + 1) + n) for n in range(self.channels)]
        found = np.stack(waves + [np.abs(windows[:, 0])] * self.extra, axis=1).astype(np.float32)
        return self.place.put(found)

    def taken(self, windows):
        return self(windows).nbytes

    def room(self):
        return None

    def free(self):
        pass


def seen(shape=(20, 24, 18), *, strips=1, onto=None, backend=None, plan=None, watch=None, patch=(12, 16, 12)):
    """Run a pass over blobs, watched; return who watched, and the logits of the whole grid."""
    plan = plan or plan_of()
    backend = backend or Waves(channels=len(plan.atoms) + 1)
    scan = smooth_scan(shape)
    prepared = Prepared(scan, (Rescale(-1e9, 1e9, 0.0, 100.0),))
    windows = Windows.over(shape, patch, 0.5)
    watch = watch or Doubt(plan, maps=("uncertainty",))
    logits = np.zeros((len(plan.atoms) + 1 + backend_extra(backend), *shape), np.float32)
    view = logits.transpose(0, *(1 + axis for axis in windows.axes))

    def both(strip, first, planes):
        for number, (plane, _) in enumerate(planes, first):
            view[:, number, slice(*strip.rows)] = backend.place.get(plane)
        watch(strip, first, planes)

    watch.begin(prepared, windows, backend.place)
    Pass(prepared, onto or scan.geometry, plan, backend, windows=windows).run(strips, watch=both)
    return watch, logits


def backend_extra(backend):
    return int(getattr(backend, "extra", False))


def entropy_of(logits, temperature=1.0):
    shares = np.exp((logits - logits.max(axis=0)).astype(np.float64) / temperature)
    return stats.entropy(shares / shares.sum(axis=0), axis=0)


def soft_of(logits, channels, temperature=1.0):
    shares = np.exp((logits - logits.max(axis=0)).astype(np.float64) / temperature)
    share = (shares / shares.sum(axis=0))[channels].sum(axis=0)
    mask = np.isin(logits.argmax(axis=0), channels)
    return 2 * share[mask].sum() / (mask.sum() + share.sum())


class TestTheLead:
    def test_is_the_best_channel_less_the_second_best(self):
        logits = RNG(0).normal(size=(7, 5, 6)).astype(np.float32)
        ordered = np.sort(logits, axis=0)
        np.testing.assert_array_equal(lead(logits), ordered[-1] - ordered[-2])

    def test_is_the_same_for_numpy_and_torch(self):
        logits = RNG(1).normal(size=(4, 5, 6)).astype(np.float32)
        np.testing.assert_array_equal(lead(torch.from_numpy(logits)).numpy(), lead(logits))

    def test_is_nothing_where_two_are_equal(self):
        assert (lead(np.zeros((3, 2, 2), np.float32)) == 0).all()


class TestTheMaps:
    def test_uncertainty_is_the_entropy_of_the_probabilities_in_nats(self):
        watch, logits = seen()
        found = watch.on_scan(smooth_scan((20, 24, 18)).geometry)["uncertainty"]
        assert found.shape == (1, 20, 24, 18)
        np.testing.assert_allclose(found[0], entropy_of(logits), atol=3e-4)
        assert 0.6 < found.max() <= np.log(3) + 1e-6

    def test_a_temperature_makes_it_less_sure(self):
        plan = plan_of()
        watch, logits = seen(watch=Doubt(plan, 2.5, maps=("uncertainty",)))
        found = watch.on_scan(smooth_scan((20, 24, 18)).geometry)["uncertainty"][0]
        np.testing.assert_allclose(found, entropy_of(logits, 2.5), atol=3e-4)
        assert found.mean() > entropy_of(logits).mean() * 1.5

    @pytest.mark.parametrize("order", [((2, 0, 1), (False, True, False)), ((1, 0, 2), (True, True, True))])
    def test_they_lie_on_the_scans_grid_interpolated_linearly_and_are_0_outside(self, order):
        affine = np.diag([0.6, 0.7, 1.3, 1.0])
        affine[:3, 3] = [-4, 1, 2]
        onto = Geometry(affine, (50, 33, 12))
        axes, flips = order
        reordered = medseg.geometry.AxisOrder(axes, flips)
        watch, logits = seen(onto=onto)
        found = watch.on_scan(onto.reordered(reordered))["uncertainty"][0]
        at = np.stack(np.meshgrid(*map(np.arange, onto.shape), indexing="ij"), axis=-1) @ affine[:3, :3] + affine[:3, 3]
        size = np.array(logits.shape[1:])
        inside = ((at > -0.5) & (at < size - 0.5)).all(axis=-1)
        exact = ndimage.map_coordinates(entropy_of(logits), np.moveaxis(at, -1, 0), order=1, mode="nearest")
        np.testing.assert_allclose(found, reordered.apply(np.where(inside, exact, 0)), atol=5e-4)
        assert (~inside).sum() > 1000

    def test_disagreement_is_the_last_channel_of_the_network(self):
        plan = plan_of()
        watch = Doubt(plan, maps=("uncertainty", "disagreement"))
        _, logits = seen(backend=Waves(extra=True), watch=watch, strips=3)
        found = watch.on_scan(smooth_scan((20, 24, 18)).geometry)
        np.testing.assert_array_equal(found["disagreement"][0], logits[3])
        np.testing.assert_allclose(found["uncertainty"][0], entropy_of(logits[:3]), atol=3e-4)

    @pytest.mark.parametrize("temperature", [1.0, 4.0])
    def test_what_no_window_looked_at_is_certain_at_any_temperature(self, temperature):
        plan = plan_of(crop=0.0)
        watch = Doubt(plan, temperature, maps=("uncertainty",))
        dark = np.full((1, 40, 20, 20), -1.0, np.float32)
        dark[:, :8] = 200.0
        prepared = Prepared(Volume(dark, Geometry(np.eye(4), (40, 20, 20))), (Rescale(-1e9, 1e9, 0, 100),))
        windows = Windows.over((40, 20, 20), (10, 20, 20), 0.0)
        backend = Waves()
        watch.begin(prepared, windows, backend.place)
        job = Pass(prepared, prepared.geometry, plan, backend, windows=windows)
        job.run(watch=watch)
        assert job.air > 0
        found = watch.on_scan(prepared.geometry)["uncertainty"][0]
        assert (found[:8] > 0).any()
        assert not found[10:].any()


class TestSoftDice:
    def test_by_hand(self):
        won = np.array([1, 1, 0])
        shares = np.array([[0.25, 0.5, 0.75], [0.75, 0.5, 0.25]])
        expected = joint(won, shares, sure=np.array([1, 0, 0]))
        np.testing.assert_allclose(expected, [[2.75, 0.25], [0.75, 2.25]])
        plan = plan_of(1)
        assert soft_dice(expected, plan) == {"label 1": pytest.approx(2 * 2.25 / (3 + 2.5))}

    @pytest.mark.parametrize("temperature", [0.7, 1.0, 1.9])
    def test_it_is_that_of_the_probabilities_of_the_whole_grid(self, temperature):
        watch, logits = seen(watch=Doubt(plan_of(), temperature))
        found = watch.soft_dice()
        for channel, name in enumerate(found, start=1):
            assert found[name] == pytest.approx(soft_of(logits, [channel], temperature), abs=1e-4)
        assert set(found) == {"label 1", "label 2"}

    @pytest.mark.parametrize("strips", [2, 5, 18, 50])
    def test_rows_of_two_strips_count_once(self, strips):
        whole, _ = seen(backend=Waves(extra=True), watch=Doubt(plan_of(), maps=("uncertainty", "disagreement")))
        parts, _ = seen(
            backend=Waves(extra=True), watch=Doubt(plan_of(), maps=("uncertainty", "disagreement")), strips=strips
        )
        assert parts.soft_dice() == pytest.approx(whole.soft_dice(), rel=1e-6)
        onto = smooth_scan((20, 24, 18)).geometry
        for name, values in whole.on_scan(onto).items():
            np.testing.assert_allclose(parts.on_scan(onto)[name], values, atol=1e-5)

    def test_it_is_the_same_on_a_device(self):
        host, _ = seen()
        device, _ = seen(backend=Waves(Device(torch.device("cpu"))))
        onto = smooth_scan((20, 24, 18)).geometry
        assert device.soft_dice() == pytest.approx(host.soft_dice(), rel=1e-6)
        np.testing.assert_allclose(device.on_scan(onto)["uncertainty"], host.on_scan(onto)["uncertainty"], atol=1e-6)

    def test_the_probabilities_of_a_labels_atoms_add_up(self):
        labels = [{"value": 1, "name": "whole", "atoms": [1, 2]}, {"value": 2, "name": "core", "atoms": [2]}]
        plan = Plan.parse({**PLAN, "labels": labels})
        watch, logits = seen(plan=plan)
        assert watch.soft_dice()["whole"] == pytest.approx(soft_of(logits, [1, 2]), abs=1e-4)
        assert watch.soft_dice()["core"] == pytest.approx(soft_of(logits, [2]), abs=1e-4)

    def test_a_label_that_was_not_found_has_none(self):
        class Background(Waves):
            def __call__(self, windows):
                found = super().__call__(windows)
                found[:, 2] = -9
                return found

        watch, _ = seen(backend=Background())
        assert set(watch.soft_dice()) == {"label 1"}

    def test_a_pass_that_begins_again_forgets_the_first(self):
        watch, _ = seen()
        once = watch.soft_dice()
        watch, _ = seen(backend=Waves(steep=9.0))
        assert watch.soft_dice() != pytest.approx(once, abs=0.01)
        seen(watch=watch)
        assert watch.soft_dice() == once

    def test_a_try_that_ran_out_of_memory_leaves_nothing_behind(self):
        class Narrow(Waves):
            calls = 0

            def __call__(self, windows):
                self.calls += 1
                if self.calls == 9:
                    raise MemoryError
                return super().__call__(windows)

        found = []
        for backend in (Waves(), Narrow()):
            stage = Stage(random_bundle(), How("cpu", "torch"), Host(1))
            prepared = Prepared(smooth_scan((40, 36, 38)), (Rescale(-1e9, 1e9, 0.0, 100.0),))
            stage.backend = backend
            watch = Doubt(stage.plan)
            stage.run(prepared, prepared.geometry, watch=watch)
            found.append(watch.soft_dice())
        assert found[1] == pytest.approx(found[0], rel=1e-6)
        assert backend.calls > 9


def calibration(temperature=2.0, *, intercept=0.0, slope=1.0, low=0.5, error=0.05, names=("front", "back")):
    line = DiceLine(intercept=intercept, slope=slope, low=low, cases=20, error=error)
    return Calibration(
        how="made up", cases=20, temperature=temperature, nll=(0.2, 0.1), labels=dict.fromkeys(names, line)
    )


def calibrated(**changes):
    plain = random_bundle(seed=4, **changes)
    return Bundle.of(plain.members, plan=plain.plan, card=CARD, calibration=calibration())


class TestPredicting:
    def test_a_temperature_changes_probabilities_and_no_label(self):
        bundle = calibrated()
        plain = Bundle.of(bundle.members, plan=bundle.plan, card=CARD)
        cold, warm = (Predictor(b, device="cpu")(smooth_scan(), probabilities=True) for b in (plain, bundle))
        assert np.array_equal(cold.labels.array, warm.labels.array)
        halved = np.sqrt(cold.probabilities.array)
        np.testing.assert_allclose(warm.probabilities.array, halved / halved.sum(axis=0), atol=1e-5)

    def test_expected_dice_is_the_line_at_the_soft_dice(self):
        found = Predictor(calibrated(), device="cpu")(smooth_scan(), probabilities=True)
        shares = found.probabilities.array.astype(np.float64)
        for channel, name in ((1, "front"), (2, "back")):
            mask = found.labels.mask(name)
            soft = 2 * shares[channel][mask].sum() / (mask.sum() + shares[channel].sum())
            assert found.expected_dice[name] == pytest.approx(soft, abs=1e-4)

    def test_without_a_calibration_nothing_is_expected(self):
        found = Predictor(random_bundle(), device="cpu")(smooth_scan())
        assert found.expected_dice == {}
        assert found.uncertainty is None

    def test_one_network_has_nobody_to_disagree_with(self):
        found = Predictor(random_bundle(), device="cpu")(smooth_scan(), uncertainty=True)
        assert found.uncertainty.array.shape == (1, 20, 24, 18)
        assert found.disagreement is None

    def test_members_disagree_by_the_information_between_them_and_the_label(self):
        bundle = random_bundle(members=3, patch=(20, 24, 18))
        scan = smooth_scan()
        predictor = Predictor(bundle, device="cpu")
        found = predictor(scan, uncertainty=True)
        window = torch.from_numpy(found.prepared.array())[None]
        with torch.inference_mode():
            shares = torch.stack([torch.softmax(load_network(bundle, n)(window)[0], 0) for n in range(3)]).numpy()
        exact = stats.entropy(shares.mean(axis=0), axis=0) - stats.entropy(shares, axis=1).mean(axis=0)
        np.testing.assert_allclose(found.disagreement.array[0], exact, atol=1e-5)
        assert exact.max() > 1e-3
        assert np.array_equal(predictor(scan).labels.array, found.labels.array)

    def test_members_that_are_the_same_do_not_disagree(self):
        one = random_bundle()
        twins = Bundle.of([one.members[0]] * 2, plan=one.plan, card=CARD)
        found = Predictor(twins, device="cpu")(smooth_scan(), uncertainty=True)
        assert np.abs(found.disagreement.array).max() < 1e-6
        assert found.uncertainty.array.max() > 0.1

    def test_mirrored_views_can_disagree_too(self):
        predictor = Predictor(random_bundle(mirror=[0]), device="cpu", mirror=True)
        assert predictor(smooth_scan(), uncertainty=True).disagreement.array.max() > 1e-4

    def test_maps_count_for_memory(self):
        stage = Stage(random_bundle(), How("cpu", "torch"), Host(1))
        windows = Windows.over((40, 40, 40), (16, 16, 16), 0.5)
        onto = Geometry(np.eye(4), (80, 80, 80))
        watches = [Doubt(stage.plan, maps=names) for names in ((), ("uncertainty", "disagreement"))]
        needs = [stage.need(windows, onto, probabilities=False, watch=watch).on_host for watch in watches]
        assert needs[1] - needs[0] == 2 * 4 * (40**3 + 80**3)


def cases_of(temperature, *, count=20, size=(12, 10, 8), seed=0):
    """Evidence of cases whose references are drawn from the probabilities at a temperature."""
    plan = plan_of()
    found = []
    for number in range(count):
        rng = RNG(seed + number)
        logits = rng.normal(size=(3, *size)).astype(np.float32) * 3
        shares = softmax(logits.reshape(3, -1).astype(np.float64), temperature)
        drawn = (rng.random(shares.shape[1]) > np.cumsum(shares, axis=0)).sum(axis=0).reshape(size).astype(np.uint8)
        found.append(heard(plan, logits, drawn, f"case {number}"))
    return found


def heard(plan, logits, reference, name, *, drawn=None, place=None, strips=1):
    """Show logits and a reference to a witness, plane by plane."""
    place = place or Host(1)
    grid = Geometry(np.eye(4), logits.shape[1:])
    scan = Volume(np.zeros((1, *logits.shape[1:]), np.float32), grid)
    windows = Windows.over(grid.shape, grid.shape, 0.0)
    witness = Witness(plan, LabelMap(reference, grid, plan.labels), drawn)
    witness.begin(Prepared(scan, (Rescale(0, 1, 0, 1),)), windows, place)
    turned = logits.transpose(0, *(1 + axis for axis in windows.axes))
    labels = turned.argmax(axis=0).astype(np.uint8)
    for strip in windows.strips(strips):
        rows = slice(*strip.rows)
        planes = [
            (place.put(np.ascontiguousarray(turned[:, n, rows])), place.put(np.ascontiguousarray(labels[n, rows])))
            for n in range(turned.shape[1])
        ]
        witness(strip, 0, planes)
    found = logits.argmax(axis=0)
    scores = {label.name: dice(found == label.value, reference == label.value) for label in plan.labels}
    return witness.evidence(name, scores)


def nll_of(logits, reference, temperature):
    flat = logits.reshape(len(logits), -1).astype(np.float64) / temperature
    own = flat[reference.ravel(), np.arange(flat.shape[1])]
    top = flat.max(axis=0)
    return float((np.log(np.exp(flat - top).sum(axis=0)) + top - own).sum())


class TestAWitness:
    logits = RNG(5).normal(size=(3, 12, 10, 8)).astype(np.float32) * 9
    reference = RNG(6).integers(0, 3, (12, 10, 8)).astype(np.uint8)

    def test_hears_the_negative_log_likelihood_at_each_temperature(self):
        found = heard(plan_of(), self.logits, self.reference, "a")
        exact = [nll_of(self.logits, self.reference, temperature) for temperature in TEMPERATURES]
        np.testing.assert_allclose(found.nll, exact, rtol=1e-4)
        assert found.voxels == 960

    def test_a_network_that_is_sure_and_wrong_pays_for_it(self):
        found = heard(plan_of(), self.logits * 90, self.reference, "a")
        exact = [nll_of(self.logits * 90, self.reference, temperature) for temperature in TEMPERATURES]
        np.testing.assert_allclose(found.nll, exact, rtol=1e-4)

    def test_and_the_soft_dice(self):
        found = heard(plan_of(), self.logits, self.reference, "a")
        for channel, name in ((1, "label 1"), (2, "label 2")):
            exact = [soft_of(self.logits, [channel], temperature) for temperature in TEMPERATURES]
            np.testing.assert_allclose(found.soft[name], exact, atol=1e-4)

    @pytest.mark.parametrize("strips", [2, 4, 8])
    def test_strips_and_devices_change_nothing(self, strips):
        whole = heard(plan_of(), self.logits, self.reference, "a")
        parts = heard(plan_of(), self.logits, self.reference, "a", strips=strips, place=Device(torch.device("cpu")))
        assert parts.voxels == whole.voxels
        np.testing.assert_allclose(parts.nll, whole.nll, rtol=1e-5)
        assert all(parts.soft[name] == pytest.approx(whole.soft[name], abs=2e-6) for name in whole.soft)

    def test_leaves_out_what_nobody_has_drawn(self):
        drawn = np.zeros((12, 10, 8), bool)
        drawn[:5] = True
        found = heard(plan_of(), self.logits, self.reference, "a", drawn=drawn)
        part = heard(plan_of(), self.logits[:, :5], self.reference[:5], "a")
        assert found.voxels == part.voxels == 400
        np.testing.assert_allclose(found.nll, part.nll, rtol=1e-6)
        assert all(found.soft[name] == pytest.approx(part.soft[name]) for name in part.soft)

    def test_refuses_more_atoms_than_its_reference_can_hold(self):
        plan = plan_of(255)
        grid = Geometry(np.eye(4), (2, 2, 2))
        with pytest.raises(UsageError, match="255 atoms"):
            Witness(plan, LabelMap(np.zeros((2, 2, 2), np.uint8), grid, plan.labels))


def evidence(number, soft, dice, *, damaged=False, name="a"):
    """A case with one soft Dice at every temperature, and a likelihood that is best at 1."""
    nll = tuple(100 + (step / 4) ** 2 for step in range(-4, 9))
    return Evidence(f"case {number:03d}", 100, nll, {name: (soft,) * len(nll)}, {name: dice}, damaged)


class TestFitting:
    @pytest.mark.parametrize("temperature", [0.8, 1.0, 1.6, 3.0])
    def test_finds_the_temperature_from_which_the_references_were_drawn(self, temperature):
        found = fit(cases_of(temperature), ["label 1", "label 2"], "by hand")
        assert found.temperature == pytest.approx(temperature, rel=0.05)
        assert found.nll[1] <= found.nll[0] + 1e-9

    def test_right_probabilities_give_the_right_dice(self):
        found = fit(cases_of(1.6, count=30), ["label 1", "label 2"], "by hand")
        assert all(line.error < 0.04 for line in found.labels.values())
        fresh = cases_of(1.6, count=30, seed=500)
        away = [expected_dice(each, found)["label 1"] - each.dice["label 1"] for each in fresh]
        assert abs(np.mean(away)) < 0.02

    def test_finds_a_line_among_outliers(self):
        rng = RNG(0)
        soft = rng.uniform(0.6, 0.95, 60)
        dice = np.clip(1.8 * soft - 0.75 + rng.normal(size=60) * 0.01, 0, 1)
        dice[::15] = 0.2
        line = fit([evidence(*each) for each in zip(range(60), soft, dice, strict=True)], ["a"], "by hand").labels["a"]
        assert line.slope == pytest.approx(1.8, abs=0.1)
        assert line.pearson > 0.4
        assert line.spearman > 0.7
        assert line.cases == 60
        assert line.error_damaged is None

    def test_damaged_copies_make_it_steeper_and_do_not_move_it_for_sound_cases(self):
        rng = RNG(1)
        whole = [evidence(n, 0.9 + rng.normal() * 0.005, 0.88 + rng.normal() * 0.02) for n in range(40)]
        damaged = [
            evidence(n, soft, 0.85 - 2 * (0.9 - soft), damaged=True) for n, soft in enumerate(rng.uniform(0.5, 0.9, 40))
        ]
        line = fit([*whole, *damaged], ["a"], "by hand").labels["a"]
        assert line.slope == pytest.approx(2.1, abs=0.3)
        soft, dice = (np.mean(each) for each in zip(*((e.soft["a"][0], e.dice["a"]) for e in whole), strict=True))
        assert line.at(soft) == pytest.approx(dice, abs=1e-5)
        assert 0 < line.error_damaged < 0.05
        assert line.cases == 40

    def test_an_estimate_is_judged_by_other_cases(self):
        rng = RNG(2)  # no relation at all: the error must be that of the mean, not smaller
        dice = rng.uniform(0.5, 1, 40)
        found = [evidence(n, 0.8 + rng.normal() * 0.02, each) for n, each in enumerate(dice)]
        line = fit(found, ["a"], "by hand").labels["a"]
        assert line.error >= np.abs(dice - np.median(dice)).mean()

    def test_eight_cases_are_judged_by_the_others_too(self):
        dice = np.array([0.9, 0.5, 0.9, 0.5, 0.9, 0.5, 0.9, 0.5])
        line = fit([evidence(n, 0.8, each) for n, each in enumerate(dice)], ["a"], "by hand").labels["a"]
        assert line.error > np.abs(dice - dice.mean()).mean() + 0.005

    def test_no_line_is_less_steep_than_the_one_from_nothing_or_far_too_steep(self):
        flat = [evidence(n, 0.8 + 0.001 * n, 0.9 - 0.002 * n) for n in range(20)]
        line = fit(flat, ["a"], "by hand").labels["a"]
        assert line.at(0) == pytest.approx(0, abs=0.01)
        steep = [evidence(n, 0.8 + 0.001 * n, 0.5 + 0.02 * n) for n in range(20)]
        assert fit(steep, ["a"], "by hand").labels["a"].slope == 3

    def test_equal_cases_are_no_reason_to_fail(self):
        line = fit([evidence(n, 0.9, 0.9) for n in range(10)], ["a"], "by hand").labels["a"]
        assert (line.at(0.9), line.pearson, line.error) == (pytest.approx(0.9), None, pytest.approx(0))

    def test_few_cases_say_nothing(self):
        assert fit([evidence(n, 0.9, 0.9) for n in range(7)], ["a"], "by hand") is None
        assert fit([], ["a"], "by hand") is None
        rare = [evidence(n, 0.9, 0.9, name="a" if n < 7 else "b") for n in range(20)]
        assert set(fit(rare, ["a", "b"], "by hand").labels) == {"b"}

    def test_a_label_without_a_dice_is_left_out(self):
        found = [evidence(n, 0.9, float("nan") if n < 3 else 0.8) for n in range(20)]
        assert fit(found, ["a"], "by hand").labels["a"].cases == 17


class TestTheBundle:
    def test_keeps_its_calibration(self, tmp_path):
        bundle = calibrated()
        bundle.save(tmp_path / "m.safetensors")
        loaded = Bundle.load(tmp_path / "m.safetensors")
        assert loaded.calibration == bundle.calibration
        loaded.save(tmp_path / "again.safetensors")
        assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()

    @pytest.mark.parametrize("temperature", [0, -1, 1e-9, 1e9, "nan", None])
    def test_refuses_a_temperature_that_is_none(self, temperature):
        said = calibration().model_dump(mode="json")
        with pytest.raises(PlanError, match="temperature"):
            Calibration.parse({**said, "temperature": temperature})

    def test_refuses_a_line_that_falls(self):
        said = calibration().model_dump(mode="json")
        said["labels"]["front"]["slope"] = -1
        with pytest.raises(PlanError, match=r"labels\.front\.slope"):
            Calibration.parse(said)

    def test_refuses_unknown_keys(self, tmp_path):
        path = tmp_path / "m.safetensors"
        calibrated().save(path)
        data = path.read_bytes()
        path.write_bytes(data.replace(b'\\"damaged\\"', b'\\"dam4ged\\"'))
        with pytest.raises(BundleError, match=r"calibration\.dam4ged"):
            Bundle.load(path)

    def test_expected_dice_stays_within_0_and_1(self):
        line = DiceLine(intercept=-1, slope=3, low=0.5, cases=9, error=0.1)
        assert (line.at(0), line.at(1), line.at(0.5)) == (0, 1, 0.5)


class TestTheQualityCheck:
    @pytest.mark.parametrize(
        ("dice", "severity"), [(0.9, None), (0.46, None), (0.44, "check"), (0.26, "check"), (0.24, "refuse")]
    )
    def test_doubts_what_no_held_out_case_was_like(self, dice, severity):
        found = low_confidence({"front": dice}, calibration())
        assert [reason.severity for reason in found] == ([severity] if severity else [])
        assert all(reason.code == "LOW_CONFIDENCE" and "front" in reason.detail for reason in found)

    def test_a_scan_that_became_noise_is_doubted(self, sample):
        predictor = Predictor.load("hippocampus-t1", device="cpu")
        scan = medseg.read(sample)
        noise = RNG(0).normal(size=scan.array.shape) * scan.array.std() * 2.5
        lost = Volume((scan.array + noise).astype(np.float32), scan.geometry)
        sound, doubted = (predictor(each).expected_dice for each in (scan, lost))
        assert not low_confidence(sound, predictor.bundle.calibration)
        assert low_confidence(doubted, predictor.bundle.calibration)
        assert all(doubted[name] < sound[name] - 0.1 for name in sound)


class TestTheCommand:
    def test_writes_the_maps_and_the_expected_dice(self, tmp_path, run):
        calibrated(members=2).save(tmp_path / "m.safetensors")
        medseg.write(smooth_scan(), tmp_path / "scan.nii.gz")
        words = ("predict", tmp_path / "scan.nii.gz", "-m", tmp_path / "m.safetensors", "--device", "cpu")
        code, out, err = run(*words, "--uncertainty")
        assert code == 0, err
        report = json.loads((tmp_path / "scan_seg.json").read_text())
        for kind in ("uncertainty", "disagreement"):
            values = medseg.read(tmp_path / f"scan_seg_{kind}.nii.gz")
            assert values.geometry.same_as(medseg.read(tmp_path / "scan.nii.gz").geometry)
            assert values.array.dtype == np.float32
            assert 0 < values.array.max() <= np.log(3) + 1e-6
            assert report["outputs"][kind].endswith(f"scan_seg_{kind}.nii.gz")
        expected = report["labels"][0]["expected_dice"]
        assert 0 < expected <= 1
        assert f"expected Dice {expected:.2f}" in out
        code, out, err = run("predict", tmp_path, "-m", tmp_path / "m.safetensors", "--device", "cpu", "--no-picture")
        assert (code, out.count("quality check")) == (0, 1), err  # the maps are no scans

    def test_one_network_writes_no_disagreement(self, tmp_path, run, bundle_file):
        medseg.write(smooth_scan(), tmp_path / "scan.nii.gz")
        code, _, err = run("predict", tmp_path / "scan.nii.gz", "-m", bundle_file(), "--device", "cpu", "--uncertainty")
        assert code == 0, err
        assert (tmp_path / "scan_seg_uncertainty.nii.gz").exists()
        assert not (tmp_path / "scan_seg_disagreement.nii.gz").exists()
        assert json.loads((tmp_path / "scan_seg.json").read_text())["labels"][0]["expected_dice"] is None

    def test_a_model_says_how_well_it_knows_itself(self, run):
        code, out, _ = run("models", "show", "hippocampus-t1")
        assert code == 0
        assert "temperature:" in out
        assert "dice anterior off by 0.02" in out


def test_watching_takes_no_torch():
    code = (
        "import sys; import medseg.inference.uncertainty, medseg.inference.calibration; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

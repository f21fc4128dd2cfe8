"""The loop: it goes on as if nothing had happened, learns only where somebody has drawn, and says when it cannot."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import safetensors
import torch
from conftest import PLAN, smooth_scan
from monai.losses import DiceCELoss

from medseg.errors import PlanError, TrainingError, UsageError
from medseg.plan import Plan
from medseg.training import Place, Recipe, Sample, dice_cross_entropy, fit
from medseg.training.held_back import HeldBack
from medseg.training.losses import region_table
from medseg.training.patches import IGNORE
from medseg.training.trainee import Trainee

TINY = Plan.parse(PLAN)
DROPPING = Plan.parse({**PLAN, "network": {"architecture": "fcn8s", "options": {"width": 2, "fc_width": 4}}})
REGIONS = Plan.parse(
    {**PLAN, "labels": [{"value": 1, "name": "whole", "atoms": [1, 2]}, {"value": 2, "name": "core", "atoms": [2]}]}
)


def samples(count=3, shape=(18, 20, 16)) -> list[Sample]:
    found = []
    for seed in range(count):
        scan = smooth_scan(shape, seed=seed)
        target = (scan.array > 200).astype(np.uint8) + (scan.array > 400)
        found.append(Sample(scan.array / 300, target.astype(np.uint8)))
    return found


class Killed(Exception):
    pass


def killed_after(count):
    def hear(step):
        if step.step == count:
            raise Killed

    return hear


@pytest.mark.parametrize("plan", [TINY, DROPPING], ids=["unet", "with dropout"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_loop_that_was_killed_goes_on_to_the_same_weights(tmp_path, monkeypatch, plan, optimizer):
    monkeypatch.setattr("medseg.training.loop._SHORTEST", 0)
    monkeypatch.setattr("medseg.training.loop._CHECKPOINTS", 1e9)
    recipe = Recipe(steps=9, optimizer=optimizer, rate=1e-3, mirror=(0,))
    whole, heard = [], []
    expected = fit(samples(), plan, recipe, on_step=lambda step: whole.append((step.step, step.rate, step.loss)))
    place = Place(checkpoint=tmp_path / "c", mark="a")
    for count in (2, 5, 7):
        with pytest.raises(Killed):
            fit(samples(), plan, recipe, place=place, on_step=killed_after(count))
    found = fit(
        samples(), plan, recipe, place=place, on_step=lambda step: heard.append((step.step, step.rate, step.loss))
    )
    assert heard == whole[-len(heard) :]
    assert 1 <= len(heard) < 9
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_a_loop_that_is_done_gives_its_weights_again_without_a_step(tmp_path):
    place = Place(checkpoint=tmp_path / "c")
    first = fit(samples(), TINY, Recipe(steps=2), place=place)
    heard = []
    again = fit(samples(), TINY, Recipe(steps=2), place=place, on_step=heard.append)
    assert not heard
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_a_checkpoint_is_data_and_a_damaged_or_foreign_one_is_refused(tmp_path):
    path = tmp_path / "c"
    fit(samples(), TINY, Recipe(steps=1), place=Place(checkpoint=path, mark="mine"))
    with safetensors.safe_open(path, "np") as file:
        assert set(file.metadata()) == {"form", "mark", "json"}
    with pytest.raises(UsageError, match="another training"):
        fit(samples(), TINY, Recipe(steps=1), place=Place(checkpoint=path, mark="other"))
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UsageError, match="damaged"):
        fit(samples(), TINY, Recipe(steps=1), place=Place(checkpoint=path, mark="mine"))


def test_a_frozen_encoder_stays_as_it_is():
    before = Trainee.new(TINY, Recipe(steps=1)).weights()
    after = fit(samples(), TINY, Recipe(steps=3, freeze=True))
    for name, tensor in before.items():
        same = np.array_equal(tensor.numpy(), after[name])
        assert same == name.startswith(("stem", "downs")), name


def test_a_loss_that_is_no_number_stops_the_training():
    broken = [Sample(np.full((1, 16, 16, 16), np.nan, np.float32), np.ones((1, 16, 16, 16), np.uint8))]
    with pytest.raises(TrainingError, match="step 1"):
        fit(broken, TINY, Recipe(steps=2))


def test_a_training_by_the_clock_ends_with_it():
    steps = []
    fit(samples(), TINY, Recipe(steps=10**6, seconds=1.5), on_step=steps.append)
    assert 1.4 < steps[-1].seconds < 3
    assert steps[-1].rate < max(step.rate for step in steps) / 5


def test_patience_ends_a_training_that_gets_no_better_with_the_best_weights(monkeypatch, tmp_path):
    monkeypatch.setattr("medseg.training.loop.EPOCH", 2)
    dice = iter([0.5, 0.7, 0.6, 0.65, 0.9])
    monkeypatch.setattr(HeldBack, "dice", lambda self, network, device: {"front": next(dice)})
    heard = []
    best = fit(samples(), TINY, Recipe(steps=20, patience=2), on_step=heard.append)
    assert len(heard) == 8
    dice = iter([0.5, 0.7, 0.6, 0.65])
    place = Place(checkpoint=tmp_path / "c")
    fit(samples(), TINY, Recipe(steps=20, patience=2), place=place)
    again = []  # killed after its last step, it is done all the same
    same = fit(samples(), TINY, Recipe(steps=20, patience=2), place=place, on_step=again.append)
    assert not again
    assert all(np.array_equal(best[name], same[name]) for name in best)
    monkeypatch.setattr(HeldBack, "dice", lambda self, network, device: {})
    shorter = []
    fit(samples(), TINY, Recipe(steps=20), on_step=shorter.append)
    assert len(shorter) == 20
    assert all(np.isfinite(array).all() for array in best.values())


@pytest.mark.parametrize("axes", [2, 3])
def test_the_loss_is_monais_where_labels_do_not_overlap(axes):
    torch.manual_seed(0)
    size = (2, 4, 6, 5, 4)[: axes + 2]
    logits = torch.randn(size)
    target = torch.randint(0, 4, (2, 1, *size[2:]))
    peer = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)
    assert dice_cross_entropy(logits, target.float()).item() == pytest.approx(peer(logits, target).item(), abs=1e-4)


def test_what_nobody_has_drawn_has_no_part_in_the_loss():
    torch.manual_seed(0)
    logits, target = torch.randn(1, 3, 4, 4, 6), torch.randint(0, 3, (1, 1, 4, 4, 6)).float()
    target[..., 3:] = IGNORE
    expected = dice_cross_entropy(logits[..., :3], target[..., :3])
    assert dice_cross_entropy(logits, target).item() == pytest.approx(expected.item(), abs=1e-6)
    logits[..., 3:] = 50
    assert dice_cross_entropy(logits, target).item() == pytest.approx(expected.item(), abs=1e-6)
    nothing = dice_cross_entropy(logits, torch.full_like(target, IGNORE))
    assert torch.isfinite(nothing)


def test_regions_are_compared_as_regions():
    table = region_table(REGIONS)
    assert table.tolist() == [[0, 1, 1], [0, 0, 1]]
    assert region_table(TINY) is None
    target = torch.tensor([0.0, 1, 2, 2]).reshape(1, 1, 2, 2, 1)
    right = torch.nn.functional.one_hot(target.long()[:, 0], 3).movedim(-1, 1) * 40.0
    assert dice_cross_entropy(right, target, table).item() == pytest.approx(0, abs=1e-4)
    swapped = right[:, [0, 2, 1]]  # the whole is right, the core is not
    probabilities = swapped.softmax(1)
    whole, core = 0.0, 1 - 2 * 0 / (1 + 2)
    entropy = -torch.log(probabilities.gather(1, target.long())).mean().item()
    assert dice_cross_entropy(swapped, target, table).item() == pytest.approx((whole + core) / 2 + entropy, abs=1e-3)


def test_the_dice_of_held_back_patches_is_that_of_their_labels():
    class Answer(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.one_hot((x[:, 0] > 0.5).long() * 2, 3).movedim(-1, 1).float()

    target = np.zeros((1, 16, 16, 16), np.uint8)
    target[0, :2], target[0, 2:4], target[0, 12:] = 1, 2, IGNORE
    image = np.zeros((1, 16, 16, 16), np.float32)
    image[0, 1:4] = image[0, 12:] = 1
    dice = HeldBack([Sample(image, target)], REGIONS).dice(Answer(), torch.device("cpu"))
    assert dice["whole"] == pytest.approx(2 * 3 / (3 + 4))
    assert dice["core"] == pytest.approx(2 * 2 / (3 + 2))
    assert HeldBack([], REGIONS).dice(Answer(), torch.device("cpu")) == {}


def test_a_network_without_encoder_cannot_be_frozen(monkeypatch):
    from medseg.networks import ARCHITECTURES

    monkeypatch.setitem(ARCHITECTURES, "one", lambda axes, a, b: torch.nn.Conv3d(a, b, 1))
    plan = Plan.parse({**PLAN, "network": {"architecture": "one"}})
    with pytest.raises(UsageError, match="--freeze"):
        fit(samples(), plan, Recipe(steps=1, freeze=True))
    monkeypatch.setitem(ARCHITECTURES, "half", lambda axes, a, b: torch.nn.Conv3d(a, b, 2, 2))
    with pytest.raises(PlanError, match="keeps the size"):
        fit(samples(), Plan.parse({**PLAN, "network": {"architecture": "half"}}), Recipe(steps=1))


RANKS = """
import hashlib, sys
from conftest import PLAN
from test_fit import samples
from medseg.plan import Plan
from medseg.training import Place, Recipe, fit
from medseg.training.distributed import Together

devices = Together("cpu", 2, 1)
losses = []
weights = fit(samples(), Plan.parse(PLAN), Recipe(steps=30, batch=4), place=Place(devices),
              on_step=lambda step: losses.append(step.loss))
digest = hashlib.sha256(b"".join(weights[name].tobytes() for name in sorted(weights))).hexdigest()
sys.stdout.write(f"rank {devices.rank} of {devices.count}: {digest} {sum(losses[:5]) > sum(losses[-5:])}\\n")
"""


@pytest.mark.slow
def test_two_processes_learn_and_agree_to_the_bit(tmp_path, request):
    pytest.importorskip("lightning_fabric")
    (tmp_path / "ranks.py").write_text(RANKS)
    environment = {"PYTHONPATH": str(request.path.parent), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(tmp_path / "ranks.py")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=250, env=environment)
    assert done.returncode == 0, done.stderr
    said = sorted(line.split(": ") for line in done.stdout.splitlines() if line.startswith("rank"))
    assert [who for who, _ in said] == ["rank 0 of 2", "rank 1 of 2"]
    assert said[0][1] == said[1][1]
    assert said[0][1].endswith("True")

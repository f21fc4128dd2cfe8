"""Planning: what is chosen for data sets of many kinds, and that every plan can be trained."""

import json
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medseg.errors import UsageError
from medseg.inference import new_network
from medseg.networks.needs import needs
from medseg.plan import Code, Label, Network, Plan, Window, ZScore
from medseg.training.dataset import Dataset
from medseg.training.planning import Wishes, describe, plan_training
from medseg.training.planning import machine as machines
from medseg.training.planning.labels import atom_table, plan_labels, sided
from medseg.training.planning.machine import Machine, parse_memory, this_machine
from medseg.training.planning.memory import _kept, memory
from medseg.training.planning.network import EFFORTS, stages
from medseg.training.planning.survey import CaseFacts, Survey
from medseg.training.planning.symmetry import coarse, told_apart

CPU = Machine("cpu", 8 * 10**9, "cpu")
GPU = Machine("cuda", 8 * 10**9, "cuda:0")
SERVER = Machine("cuda", 130 * 10**9, "cuda:0")


def mr(rng, channels):
    return rng.uniform(50, 900, (channels, 400))


def ct(rng, channels):
    air, flesh = rng.normal(-1000, 15, (channels, 150)), rng.normal(60, 80, (channels, 250))
    return np.concatenate([air, flesh], axis=1).round()


def picture(rng, channels):
    return rng.integers(0, 256, (channels, 400))


def blanked(rng, channels):
    return np.concatenate([np.zeros((channels, 300)), rng.uniform(20, 900, (channels, 100))], axis=1)


def survey(shapes, spacings=(1, 1, 1), *, whole=mr, foreground=mr, channels=1, floor=0.0, physical=True) -> Survey:
    """Return the facts of cases of those shapes, and of one spacing or as many."""
    spacings = [spacings] * len(shapes) if np.ndim(spacings) == 1 else spacings
    cases = []
    for number, (shape, spacing) in enumerate(zip(shapes, spacings, strict=True)):
        rng = np.random.default_rng(number)
        values = [make(rng, channels).astype(np.float32) for make in (foreground, whole)]
        grid = tuple(map(int, shape)), tuple(map(float, spacing))
        cases.append(CaseFacts(f"c{number}", *grid, physical, *values, floor, {"a": 1.0}))
    return Survey(tuple(cases))


def dataset(*names, channels=()) -> Dataset:
    labels = tuple(Label(value=number, name=name) for number, name in enumerate(names or ("organ",), start=1))
    return Dataset("data", (), channels, labels)


def around(shape, count=20, spread=0.1):
    """Return shapes near one, the same each time."""
    rng = np.random.default_rng(0)
    return [np.maximum(1, np.round(np.array(shape) * rng.uniform(1 - spread, 1 + spread, 3))) for _ in range(count)]


def chosen(facts, data=None, wishes=None, machine=CPU):
    return plan_training(facts, data or dataset(), wishes or Wishes(), machine)


def reason(planned, what):
    (choice,) = [choice for choice in planned.choices if choice.what == what]
    return f"{choice.value}: {choice.why}"


HEADS = survey(around((180, 220, 200)))
PROSTATE = survey(around((320, 320, 20)), [(0.6, 0.6, 4.0)] * 15 + [(0.6, 0.6, 3.0)] * 5)
ABDOMEN = survey([(512, 512, n) for n in range(100, 200, 5)], (0.8, 0.8, 3), whole=ct)
CROPS = survey(around((35, 50, 36), 60, 0.08))
FUNDUS = survey([(565, 584, 1)] * 20, whole=picture, foreground=picture, channels=3, physical=False)
MICROSCOPY = survey([(512, 512, 1)] * 24, whole=picture, physical=False)
TUMOURS = survey([(240, 240, 155)] * 30, whole=blanked, channels=4, floor=0.8)
SAGITTAL = survey([(1, 256, 200)] * 9, (5, 1, 1))
ALL = {
    "heads": HEADS,
    "prostate": PROSTATE,
    "abdomen": ABDOMEN,
    "crops": CROPS,
    "fundus": FUNDUS,
    "microscopy": MICROSCOPY,
    "tumours": TUMOURS,
    "sagittal": SAGITTAL,
    "stack": survey([(256, 256, 30)] * 3, physical=False),
    "cardiac": survey(around((216, 256, 9)), (1.5, 1.5, 10)),
    "specks": survey([(5, 4, 6), (1, 1, 5), (3, 9, 4)]),
    "one voxel": survey([(1, 1, 1)]),
}


@pytest.mark.parametrize("machine", [CPU, GPU, SERVER], ids=["cpu", "gpu", "server"])
@pytest.mark.parametrize("name", ALL)
def test_every_plan_builds_fits_and_survives_its_way_through_json(name, machine):
    planned = chosen(ALL[name], machine=machine)
    plan = planned.plan
    assert Plan.parse(json.loads(json.dumps(plan.model_dump(mode="json")))) == plan
    assert memory(plan).of(planned.batch) <= machine.memory
    with torch.device("meta"):
        answer = new_network(plan).eval()(torch.zeros(1, len(plan.channels), *plan.patch[: plan.axes]))
    assert answer.shape == (1, len(plan.atoms) + 1, *plan.patch[: plan.axes])
    assert all(axis < plan.axes for axis in planned.plan.mirror)
    assert planned.batch >= 2


@given(
    shape=st.tuples(*[st.integers(1, 400)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 12)] * 3),
    spread=st.floats(0, 0.9),
    size=st.floats(0.5e9, 40e9),
    kind=st.sampled_from(["cpu", "cuda"]),
    physical=st.booleans(),
)
@settings(max_examples=15)
def test_no_data_set_gets_a_plan_that_does_not_fit(shape, spacing, spread, size, kind, physical):
    facts = survey(around(shape, 6, spread), spacing if physical else (1, 1, 1), physical=physical)
    machine = Machine(kind, int(size), kind)
    try:
        planned = chosen(facts, machine=machine)
    except UsageError as error:
        assert "the smallest patch" in error.problem and size < 2e9  # noqa: PT018
        return
    plan, need = planned.plan, memory(planned.plan)
    assert need.of(planned.batch) <= machine.memory
    largest = np.max(facts.shapes * facts.spacings, axis=0)
    axes = {"RAS": (0, 1, 2), "RSA": (0, 2, 1), "ASR": (1, 2, 0)}[plan.orientation]
    for n, mm, axis in zip(plan.patch[: plan.axes], plan.spacing or (1, 1, 1), axes, strict=False):
        assert n <= max(8, 1.34 * np.ceil(largest[axis] / mm))  # 9 voxels may become 12


@pytest.mark.parametrize("name", ["prostate", "abdomen", "tumours"])
def test_the_same_data_give_the_same_plan(name):
    assert chosen(ALL[name]) == chosen(ALL[name])


def test_small_crops_are_covered_by_one_patch():
    planned = chosen(CROPS)
    assert planned.plan.patch == (40, 56, 40)
    assert planned.plan.network.options == {"stem_stride": 2, "widths": [32, 64, 128]}
    assert planned.plan.overlap == 0.25
    assert planned.plan.spacing == (1, 1, 1)
    assert planned.batch == 2
    assert "covers a typical scan" in reason(planned, "patch")
    assert chosen(CROPS, machine=GPU).plan.patch == (40, 56, 40)


def test_a_gpu_gets_a_wider_network_at_full_resolution():
    planned = chosen(HEADS, machine=SERVER)
    options = planned.plan.network.options
    assert "stem_stride" not in options
    assert options["deep_supervision"]
    assert options["widths"] == [32, 64, 128, 256, 320, 320]
    assert prod(planned.plan.patch) > 3_000_000
    assert prod(chosen(HEADS, machine=GPU).plan.patch) < prod(planned.plan.patch)


def test_patches_of_large_scans_are_near_a_cube_in_mm():
    for facts, machine in ((HEADS, CPU), (HEADS, GPU), (ABDOMEN, CPU), (ABDOMEN, GPU)):
        plan = chosen(facts, machine=machine).plan
        sides = np.array(plan.patch) * plan.spacing
        assert sides.max() < 1.5 * sides.min()
        assert plan.overlap == 0.5


def test_thick_slices_are_neither_shrunk_nor_mixed_before_the_plane_is_as_coarse():
    planned = chosen(PROSTATE, machine=GPU)
    assert planned.plan.spacing == (0.6, 0.6, 3.0)  # the 10th percentile along the thick axis
    options = planned.plan.network.options
    assert options["strides"][:2] == [[2, 2, 1], [2, 2, 1]]
    assert options["strides"][2] == 2
    assert options["kernels"][:3] == [[3, 3, 1], [3, 3, 1], 3]
    assert options["kernels"][-1] == 3
    lean = chosen(PROSTATE).plan.network.options
    assert lean["stem_stride"] == [2, 2, 1]
    assert "10th percentile" in reason(planned, "spacing")


def test_stages_by_hand():
    strides, kernels = stages((32, 32, 32), (1, 1, 1), most=5)
    assert strides == [(2, 2, 2)] * 3  # 32, 16, 8, 4
    assert kernels == [(3, 3, 3)] * 4
    assert stages((32, 32, 32), (1, 1, 1), most=2)[0] == [(2, 2, 2)] * 2
    assert stages((7, 7), (1, 1), most=5) == ([(1, 1)], [(3, 3), (3, 3)])
    assert stages((64, 64, 6), (1, 1, 9), most=5)[0] == [(2, 2, 1)] * 4  # 6 slices are too few to be halved
    strides, kernels = stages((64, 64, 64), (1, 1, 2), most=5)  # a factor of 2 is no reason to wait
    assert strides == [(2, 2, 2)] * 4
    assert kernels == [(3, 3, 3)] * 5


def test_spacings_that_agree_are_kept_and_those_that_differ_give_their_median():
    noise = survey(around((40, 40, 40), 3), [(0.5, 0.5, 0.50004), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)])
    assert chosen(noise).plan.spacing == (0.5, 0.5, 0.5)
    mixed = survey(around((60, 60, 60), 3), [(0.5, 0.5, 0.9), (0.7, 0.7, 1.0), (0.9, 0.9, 1.3)])
    assert chosen(mixed).plan.spacing == (0.7, 0.7, 1.0)
    assert "median of 3 cases" in reason(chosen(mixed), "spacing")


def test_pictures_are_planned_in_two_axes_without_a_spacing():
    planned = chosen(FUNDUS, dataset("vessel", channels=("red", "green", "blue")), machine=GPU)
    plan = planned.plan
    assert (plan.axes, plan.spacing, plan.orientation, plan.patch[2], plan.crop) == (2, None, "RAS", 1, None)
    assert planned.plan.mirror == (0, 1)
    assert [channel.name for channel in plan.channels] == ["red", "green", "blue"]
    assert "a colour" in reason(planned, "channel green")
    assert "as stored" in reason(planned, "spacing")
    assert chosen(MICROSCOPY).plan.patch == (256, 256, 1)
    assert "bytes" in reason(chosen(MICROSCOPY), "channel image")


def test_a_sagittal_slice_lies_in_the_plane_of_the_network():
    planned = chosen(SAGITTAL)
    assert (planned.plan.axes, planned.plan.orientation) == (2, "ASR")
    assert planned.plan.patch == (256, 208, 1)
    assert planned.plan.spacing == (1, 1, 5)
    assert planned.plan.mirror == ()  # left and right are not in the plane
    coronal = chosen(survey([(256, 3, 200)] * 5, (1, 8, 1)))
    assert (coronal.plan.axes, coronal.plan.orientation, coronal.plan.mirror) == (2, "RSA", (0,))


@pytest.mark.parametrize(
    ("shape", "spacing", "axes"),
    [
        ((256, 256, 1), (1, 1, 1), 2),
        ((256, 256, 3), (1, 1, 1), 2),
        ((256, 256, 6), (1, 1, 8), 2),
        ((256, 256, 6), (1, 1, 2), 3),
        ((256, 256, 12), (1, 1, 8), 3),
    ],
)
def test_few_thick_slices_are_planned_in_two_axes(shape, spacing, axes):
    assert chosen(survey([shape] * 4, spacing)).plan.axes == axes


def test_ct_is_known_by_its_name_and_by_its_air():
    planned = chosen(ABDOMEN)
    rule = planned.plan.channels[0].intensity
    assert isinstance(rule, Window)
    values = ABDOMEN.intensities()[0].astype(float)
    assert (rule.low, rule.high) == pytest.approx(np.percentile(values, (0.5, 99.5)), rel=1e-4)
    clipped = values.clip(rule.low, rule.high)
    assert (rule.mean, rule.deviation) == pytest.approx((clipped.mean(), clipped.std()), rel=1e-4)
    assert "looks like CT" in reason(planned, "channel image")
    for name in ("CT", "ct_portal", "HU", "abdomen-CT"):
        named = chosen(CROPS, dataset(channels=(name,)))
        assert isinstance(named.plan.channels[0].intensity, Window), name
    for name in ("T1", "factor", "PET", "hue"):
        assert isinstance(chosen(ABDOMEN, dataset(channels=(name,))).plan.channels[0].intensity, ZScore), name


def test_two_thirds_of_the_cases_with_air_are_not_enough_to_say_ct():
    cases = [*ABDOMEN.cases[:8], *survey([(512, 512, 100)] * 4, (0.8, 0.8, 3)).cases]
    assert isinstance(chosen(Survey(tuple(cases))).plan.channels[0].intensity, ZScore)


@pytest.mark.parametrize("count", [0, 400])
def test_constant_foreground_still_gives_a_deviation(count):
    constant = survey(around((40, 40, 40), 4), foreground=lambda rng, channels: np.full((channels, count), 7.0))
    rule = chosen(constant, dataset(channels=("CT",))).plan.channels[0].intensity
    assert rule.high > rule.low
    flat = survey([(40, 40, 40)], foreground=lambda *_: np.full((1, count), 7.0), whole=lambda *_: np.full((1, 9), 7.0))
    assert chosen(flat, dataset(channels=("CT",))).plan.channels[0].intensity.deviation > 0


def test_a_blanked_background_is_cropped_unless_labels_or_ct_speak_against_it():
    assert chosen(TUMOURS).plan.crop == 0
    assert "30 of 30" in reason(chosen(TUMOURS), "crop")
    assert chosen(HEADS).plan.crop is None
    assert chosen(TUMOURS, dataset(channels=("CT", "b", "c", "d"))).plan.crop is None
    reaching = survey([(240, 240, 155)] * 30, whole=blanked, foreground=blanked, floor=0.8)
    assert chosen(reaching).plan.crop is None
    assert "labels reach" in reason(chosen(reaching), "crop")
    differ = Survey(TUMOURS.cases[:2] + survey([(240, 240, 155)] * 2, channels=4, floor=0.8).cases)
    assert "differ" in reason(chosen(differ), "crop")


def test_sided_labels_are_never_mirrored():
    assert chosen(HEADS).plan.mirror == (0,)
    planned = chosen(HEADS, dataset("hippocampus_left", "hippocampus_right"))
    assert planned.plan.mirror == ()
    assert "hippocampus_left and 1 other" in reason(planned, "mirroring")
    assert chosen(FUNDUS, dataset("left_eye")).plan.mirror == ()


@pytest.mark.parametrize(
    "name",
    ["left_kidney", "Kidney L", "lung_upper_lobe_right", "KidneyLeft", "niere links", "Rein gauche", "a. dextra", "R"],
)
def test_names_of_sides(name):
    assert sided((Label(value=1, name=name),)) == (name,)


@pytest.mark.parametrize("name", ["cleft", "bright", "liver", "vertebra_L1", "vertebrae L5", "copyright", "rl", "Link"])
def test_names_without_a_side(name):
    assert sided((Label(value=1, name=name),)) == ()


def test_a_side_in_the_code_counts():
    left = Code(value="7771000", meaning="Left")
    assert sided((Label(value=1, name="kidney 1", modifier=left),)) == ("kidney 1",)


def test_atoms_that_no_label_tells_apart_become_one():
    labels = (
        Label(value=1, name="whole", atoms=(1, 2, 3, 4), color=(1, 2, 3)),
        Label(value=9, name="core", atoms=(2, 3, 4)),
        Label(value=4, name="active", atoms=(4,)),
    )
    assert atom_table(labels) == {1: 1, 2: 2, 3: 2, 4: 4}
    planned, choice = plan_labels(labels)
    assert [label.atoms for label in planned] == [(1, 2, 4), (2, 4), (4,)]
    assert [label.value for label in planned] == [1, 9, 4]
    assert planned[0].color == (1, 2, 3)
    assert choice.value == "3 labels, 4 classes"
    data = Dataset("data", (), (), labels)
    assert chosen(CROPS, data).plan.atoms == (1, 2, 4)
    with torch.device("meta"):
        assert new_network(chosen(CROPS, data).plan).out_channels == 4


@given(st.lists(st.sets(st.integers(1, 12), min_size=1), min_size=1, max_size=5))
def test_the_table_of_atoms_keeps_every_label(sets):
    labels = tuple(Label(value=n + 1, name=str(n), atoms=tuple(atoms)) for n, atoms in enumerate(sets))
    table = atom_table(labels)
    for given_label, planned in zip(labels, plan_labels(labels)[0], strict=True):
        back = {atom for atom, kept in table.items() if kept in planned.atoms}
        assert back == set(given_label.atoms)


def test_too_many_or_no_labels_are_refused_in_words():
    labels = tuple(Label(value=value, name=str(value)) for value in range(1, 256))
    with pytest.raises(UsageError, match="need 255 classes"):
        plan_labels(labels)
    assert len(plan_labels(labels[1:])[0]) == 254
    with pytest.raises(UsageError, match="no label"):
        plan_labels(())


def test_wishes_are_met_and_said_to_be_wishes():
    planned = chosen(HEADS, wishes=Wishes(spacing=(2, 2, 2), patch=(50, 60, 70), batch=3))
    assert planned.plan.spacing == (2, 2, 2)
    assert planned.plan.patch == (50, 60, 70)
    assert planned.batch == 3
    for what in ("spacing", "patch", "batch"):
        assert "asked for" in reason(planned, what)
    flat = chosen(HEADS, wishes=Wishes(axes=2, patch=(96, 64)))
    assert (flat.plan.axes, flat.plan.patch) == (2, (96, 64, 1))
    assert chosen(HEADS, wishes=Wishes(axes=2, patch=(96, 64, 1))) == flat


@pytest.mark.parametrize("name", ["fcn32s", "hypercolumn", "unet", "unet_attention", "unet_original", "unet_residual"])
def test_any_network_can_be_asked_for(name):
    planned = chosen(CROPS, wishes=Wishes(network=name))
    assert planned.plan.network.architecture == name
    assert "asked for" in reason(planned, "network")
    assert memory(planned.plan).of(planned.batch) <= CPU.memory


@pytest.mark.parametrize(
    ("facts", "wishes", "option"),
    [
        (HEADS, Wishes(axes=4), "--axes"),
        (FUNDUS, Wishes(axes=3), "--axes"),
        (HEADS, Wishes(spacing=(1, 1)), "--spacing"),
        (HEADS, Wishes(spacing=(1, 1, 0)), "--spacing"),
        (HEADS, Wishes(spacing=(1, 1, float("nan"))), "--spacing"),
        (HEADS, Wishes(spacing=(1e-4, 1e-4, 1e-4)), "--spacing"),
        (FUNDUS, Wishes(spacing=(1, 1, 1)), "--spacing"),
        (HEADS, Wishes(patch=(64, 64)), "--patch"),
        (HEADS, Wishes(patch=(64, 64, -1)), "--patch"),
        (HEADS, Wishes(patch=(512, 512, 512)), "--patch"),
        (HEADS, Wishes(patch=(1, 1, 1)), "--patch"),
        (FUNDUS, Wishes(patch=(64, 64, 2)), "--patch"),
        (FUNDUS, Wishes(patch=(64,)), "--patch"),
        (HEADS, Wishes(batch=0), "--batch"),
        (HEADS, Wishes(network="vnet"), "--network vnet"),
    ],
)
def test_wishes_that_do_not_fit_are_refused_by_the_name_of_their_option(facts, wishes, option):
    with pytest.raises(UsageError) as found:
        chosen(facts, wishes=wishes)
    assert found.value.problem.startswith(option)
    assert "\n" not in str(found.value)


def test_too_little_memory_is_refused_with_what_is_needed():
    with pytest.raises(UsageError, match=r"takes \d+ MB, cpu has 100 MB"):
        chosen(HEADS, machine=Machine("cpu", 10**8, "cpu"))
    with pytest.raises(UsageError, match="smallest patch"):
        chosen(HEADS, wishes=Wishes(batch=10**6))


def test_less_memory_gives_a_smaller_patch_and_says_so():
    little = Machine("cuda", 2 * 10**9, "cuda:0")
    planned = chosen(HEADS, machine=little)
    assert prod(planned.plan.patch) < prod(chosen(HEADS, machine=GPU).plan.patch)
    assert "as much as memory holds" in reason(planned, "patch")
    assert "as much as time allows" in reason(chosen(HEADS), "patch")


def test_a_batch_is_large_where_memory_is_and_small_where_the_data_are_few():
    assert chosen(HEADS, machine=SERVER).batch == 2  # of 20 cases, 5 % are one
    many = survey([(64, 64, 64)] * 400)
    assert chosen(many, machine=SERVER).batch == EFFORTS["gpu", 3].batch
    assert chosen(many).batch == 2


def test_memory_is_counted_as_the_needs_of_a_network_are():
    plan = plan_of({"widths": [8, 16, 32], "residual": True}, (512, 512, 1))
    counted = needs("unet", axes=2, in_channels=1, out_channels=2, widths=[8, 16, 32], residual=True)
    with torch.device("meta"):
        network, x = new_network(plan).train(), torch.zeros(1, 1, 512, 512)
    assert _kept(network, x) == pytest.approx(counted.activations_per_voxel * 512**2)
    assert memory(plan).weights == counted.parameters


def test_what_is_counted_without_memory_is_what_a_real_step_keeps():
    plan = plan_of({"widths": [4, 8], "residual": True}, (32, 24, 1))
    with torch.device("meta"):
        imagined = _kept(new_network(plan).train(), torch.zeros(1, 1, 32, 24))
    assert imagined == _kept(new_network(plan).train(), torch.zeros(1, 1, 32, 24)) > 0
    assert _kept(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Sigmoid()), torch.zeros(1, 1, 10, 10)) == 2 * 400


def plan_of(options, patch) -> Plan:
    return chosen(MICROSCOPY).plan.model_copy(
        update={"patch": patch, "network": Network(architecture="unet", options=options)}
    )


def test_every_choice_has_a_reason_and_its_line():
    for facts in ALL.values():
        planned = chosen(facts)
        whats = [choice.what for choice in planned.choices]
        assert len(set(whats)) == len(whats)
        for what in ("axes", "spacing", "crop", "labels", "patch", "network", "stem", "batch", "memory", "mirroring"):
            assert what in whats
        assert all(choice.value and choice.why for choice in planned.choices)
        lines = describe(planned)
        starts = {line.index(choice.value) for line, choice in zip(lines, planned.choices, strict=True)}
        assert len(starts) <= 2  # below one another; a value may stand in its own name
        assert all(len(line) < 170 for line in lines)


def test_no_case_and_names_that_do_not_match_the_channels_are_refused():
    with pytest.raises(UsageError, match="no case"):
        chosen(Survey(()))
    with pytest.raises(UsageError, match="2 channel names"):
        chosen(HEADS, dataset(channels=("T1", "T2")))


def test_the_hippocampus_data_get_the_known_patch(data):
    nibabel = pytest.importorskip("nibabel")
    shapes = [nibabel.load(path).shape for path in sorted((data / "hippocampus" / "imagesTr").glob("*.nii.gz"))]
    assert chosen(survey(shapes)).plan.patch == (40, 56, 40)


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * 10**9), ("500MB", 5 * 10**8), ("8 GiB", 8 << 30), ("1.5g", 15 * 10**8), (" 2TB ", 2 * 10**12)],
)
def test_amounts_of_memory(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["8", "", "GB", "-1GB", "0GB", "1e3GB", "8 GB GB", "99999999TB", "nan GB", "८GB"])
def test_amounts_that_are_none(text):
    with pytest.raises(UsageError, match="--memory"):
        parse_memory(text)


def test_this_machine_has_memory():
    found = this_machine("cpu")
    assert (found.kind, found.name) == ("cpu", "cpu")
    assert 1 << 20 < found.memory < 1 << 50
    assert this_machine("cpu", 123).memory == 123


def test_the_limit_of_a_container_counts(monkeypatch):
    files = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:  4000000 kB\n", "/sys/fs/cgroup/memory.max": "max\n"}

    def read(path):
        if (text := files.get(path.as_posix())) is None:
            raise FileNotFoundError(path)
        return text

    monkeypatch.setattr(Path, "read_text", read)
    assert machines._free_ram() == 4000000 << 10
    files["/sys/fs/cgroup/memory.max"] = "1000000000\n"
    assert this_machine("cpu").memory == 500000000
    files.clear()
    assert machines._free_ram() > 1 << 20


@pytest.mark.parametrize("mirrored", [False, True])
def test_scans_are_mirrored_only_if_a_mirrored_one_could_be_one_of_them(mirrored):
    rng = np.random.default_rng(0)
    cases = []
    for number, case in enumerate(survey([(20, 22, 18)] * 12).cases):
        scan = rng.normal(size=(1, 20, 22, 18)) * 0.3
        scan[0, 3:9] += 2  # an organ on the left
        if mirrored and number % 2:
            scan = scan[:, ::-1]
        cases.append(replace(case, coarse=coarse(scan)))
    planned = plan_training(Survey(tuple(cases)), dataset("organ"), Wishes(), CPU)
    assert planned.plan.mirror == ((0,) if mirrored else ())
    why = next(choice for choice in planned.choices if choice.what == "mirroring").why
    assert ("look like the others" if mirrored else "unlike the others in 100%") in why


def test_few_scans_or_scans_of_many_sizes_tell_nothing_of_sides():
    one = coarse(np.random.default_rng(0).normal(size=(1, 20, 22, 18)))
    assert told_apart([one] * 3, 0) == 0
    assert told_apart([one] * 4, 0) == 1
    assert told_apart([coarse(np.ones((1, 4, 5, 1)))] * 5, 0) == 0
    assert told_apart([], 1) == 0

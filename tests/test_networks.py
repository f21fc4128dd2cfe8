"""Every architecture keeps one contract, in 2D and 3D; the own parts of each, against its paper."""

import io

import numpy as np
import pytest
import torch
from conftest import CARD, PLAN, smooth_scan
from torch import nn
from torch.nn import functional

from medseg.bundle import Bundle
from medseg.errors import BundleError, PlanError, ShapeMismatch
from medseg.inference import Predictor, load_network, new_network
from medseg.networks import ARCHITECTURES, build, start_from
from medseg.networks.needs import _all_positive, needs, receptive_field
from medseg.plan import Plan
from medseg.training import Recipe, Sample, fit

UNET = {"widths": [4, 8, 16]}
CASES = [
    ("fcn32s", {"width": 2, "fc_width": 8}),
    ("fcn16s", {"width": 2, "fc_width": 8}),
    ("fcn8s", {"width": 2, "fc_width": 8}),
    ("fcn8s", {"width": 2, "fc_width": 8, "learned": True, "norm": "none"}),
    ("hypercolumn", {"width": 2}),
    ("hypercolumn", {"width": 2, "grid": 3, "stages": [2, 4]}),
    ("unet", UNET),
    ("unet", {**UNET, "deep_supervision": True, "norm": "batch"}),
    ("unet", {**UNET, "upsampling": "shuffle", "norm": "group"}),
    ("unet_original", {"width": 4, "stages": 3}),
    ("unet", {**UNET, "upsampling_options": {"kernel": 4}}),
    ("unet_residual", {**UNET, "upsampling": "resize", "upsampling_options": {"mode": "linear"}}),
    ("unet_attention", {**UNET, "upsampling": "linear"}),
    ("unet", {**UNET, "stem_stride": 2}),
    ("unet_residual", {**UNET, "stem_stride": 3, "upsampling": "resize", "deep_supervision": True}),
]
SIZES = {2: [(64, 32), (37, 53), (33, 1)], 3: [(32, 32, 32), (17, 33, 9), (40, 1, 3)]}


def answers(network, x) -> list[torch.Tensor]:
    """Return all that a network answers, deep supervision too."""
    answer = network(x)
    return answer if isinstance(answer, list) else [answer]


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize(("name", "options"), CASES)
class TestContract:
    """What medseg and its users rely on; an architecture of another package is tested by adding it to `CASES`."""

    @pytest.fixture
    def network(self, name, options, axes):
        torch.manual_seed(0)
        return build(name, axes=axes, in_channels=2, out_channels=3, **options)

    @pytest.fixture
    def x(self, axes):
        return torch.randn(2, 2, *SIZES[axes][1], generator=torch.Generator().manual_seed(1))

    def test_logits_have_the_size_of_the_input_friendly_or_odd(self, network, axes):
        for size in SIZES[axes]:
            assert network.eval()(torch.randn(1, 2, *size)).shape == (1, 3, *size)

    def test_a_wrong_input_is_answered_with_the_right_one(self, network, axes):
        letters = "I, J" if axes == 2 else "I, J, K"
        for wrong in ((1, 3, *SIZES[axes][0]), (1, 2, *SIZES[5 - axes][0]), (1, 2)):
            with pytest.raises(ShapeMismatch, match=rf"give \(B, 2, {letters}\)"):
                network(torch.zeros(wrong))

    def test_an_unknown_option_is_answered_with_the_known_ones(self, network, name, options, axes):
        with pytest.raises(PlanError, match=rf"'{name}' has no option 'nonsense'; it has: .*norm"):
            build(name, axes=axes, in_channels=1, out_channels=2, nonsense=1)
        with pytest.raises(PlanError, match=rf"'{name}': norm 'loud' is unknown: choose one of instance, batch"):
            build(name, axes=axes, in_channels=1, out_channels=2, **{**options, "norm": "loud"})

    def test_every_parameter_learns(self, network, x):
        sum(part.square().mean() for part in answers(network.train(), x)).backward()
        for key, parameter in network.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.abs().sum() > 0, key

    def test_evaluation_is_deterministic_and_cases_do_not_touch_each_other(self, network, x):
        whole = network.eval()(x)
        assert torch.equal(network(x), whole)
        assert torch.allclose(whole[:1], network(x[:1]), atol=1e-4)

    def test_saved_and_loaded_it_gives_the_same_answer(self, network, x, name, options, axes, tmp_path):
        plan = plan_of(name, options, axes, channels=2, labels=2)
        weights = {key: tensor.float().numpy() for key, tensor in network.state_dict().items()}
        Bundle.of([weights], plan=plan, card=CARD).save(tmp_path / "network.safetensors")
        loaded = load_network(Bundle.load(tmp_path / "network.safetensors"))
        assert torch.equal(loaded(x), network.eval()(x))

    def test_channels_last_gives_the_same_answer(self, network, x, axes):
        layout = {2: torch.channels_last, 3: torch.channels_last_3d}[axes]
        expected = network.eval()(x)
        assert torch.allclose(network.to(memory_format=layout)(x.to(memory_format=layout)), expected, atol=1e-4)

    def test_it_is_one_graph_to_the_compiler(self, network, x):
        torch.compiler.reset()
        compiled = torch.compile(network.eval(), fullgraph=True, backend="aot_eager")
        with torch.inference_mode():
            assert torch.allclose(compiled(x), network(x), atol=1e-4)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore::FutureWarning:torch", "ignore:.*LeafSpec:FutureWarning")  # of the exporter
    def test_exported_to_onnx_it_gives_the_same_answer_for_every_size(self, network, x):
        runtime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        file = io.BytesIO()
        any_size = dict.fromkeys(range(2, x.ndim), torch.export.Dim.DYNAMIC)
        torch.onnx.export(network.eval(), (x,), dynamo=True, verbose=False, dynamic_shapes=(any_size,)).save(file)
        session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
        for size in (x.shape[2:], [n + 7 for n in x.shape[2:]], [48] * (x.ndim - 2)):
            other = torch.randn(2, 2, *size)
            (found,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
            assert np.allclose(found, network(other).detach().numpy(), atol=1e-3)

    def test_a_plan_selects_it_training_trains_it_and_a_predictor_runs_it(self, network, name, options, axes):
        plan = plan_of(name, options, axes, channels=1, labels=1)
        scan = smooth_scan((20, 24, 6 if axes == 2 else 18))
        sample = Sample(scan.array / 300, (scan.array > 300).astype(np.uint8))
        losses = []
        weights = fit([sample], plan, Recipe(steps=3), on_step=lambda step: losses.append(step.loss))
        assert np.isfinite(losses).all()
        found = Predictor(Bundle.of([weights], plan=plan, card=CARD), device="cpu")(scan)
        assert found.labels.array.shape == scan.geometry.shape


def plan_of(name, options, axes, *, channels, labels):
    patch = (24, 19, 1) if axes == 2 else (24, 19, 18)
    return Plan.parse(
        {
            **PLAN,
            "axes": axes,
            "channels": [{"name": f"c{n}", "intensity": {"kind": "zscore"}} for n in range(channels)],
            "labels": [{"value": n + 1, "name": f"l{n}"} for n in range(labels)],
            "patch": patch,
            "network": {"architecture": name, "options": options},
        }
    )


def test_every_architecture_is_under_the_contract():
    assert {name for name, _ in CASES} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_default_is_too_large_for_3d(name):
    with torch.device("meta"):
        network = build(name, axes=3, in_channels=1, out_channels=2)
    assert sum(parameter.numel() for parameter in network.parameters()) <= 40e6


@pytest.mark.parametrize("arguments", [(1, 1, 1), (4, 1, 1), (2, 0, 1), (3, 1, 0)])
def test_impossible_axes_and_channels_are_refused(arguments):
    axes, in_channels, out_channels = arguments
    with pytest.raises(PlanError, match="give 2 or 3 axes, and at least one channel"):
        build("unet", axes=axes, in_channels=in_channels, out_channels=out_channels)


class TestBuild:
    def test_an_unknown_architecture_is_answered_with_the_known_ones(self):
        with pytest.raises(PlanError, match="choose one of: fcn32s, fcn16s, fcn8s, hypercolumn, unet"):
            build("nonsense", axes=3, in_channels=1, out_channels=2)

    def test_one_of_another_package_is_found_by_its_entry_point(self, monkeypatch):
        class Entry:
            def load(self):
                return ARCHITECTURES["unet"]

        monkeypatch.setattr("medseg.networks.entry_points", lambda group, name: [Entry()] if name == "other" else [])
        network = build("other", axes=2, in_channels=1, out_channels=2, widths=[4, 8])
        assert network(torch.randn(1, 1, 4, 4)).shape == (1, 2, 4, 4)

    def test_one_that_changes_the_size_is_refused_in_training_and_predicting(self, monkeypatch):
        monkeypatch.setitem(ARCHITECTURES, "smaller", lambda axes, a, b: nn.Conv3d(a, b, 3))
        plan = Plan.parse({**PLAN, "network": {"architecture": "smaller"}})
        scan = smooth_scan((16, 16, 16))
        with pytest.raises(PlanError, match=r"gives \(14, 14, 14\) voxels for a patch of \(16, 16, 16\)"):
            fit([Sample(scan.array, (scan.array > 0).astype(np.uint8))], plan, Recipe(steps=1))
        weights = {key: tensor.numpy() for key, tensor in new_network(plan).state_dict().items()}
        with pytest.raises(PlanError, match=r"gives \(3, 14, 14, 14\) values for a window of \(16, 16, 16\)"):
            Predictor(Bundle.of([weights], plan=plan, card=CARD), device="cpu")(scan)

    def test_a_patch_that_the_network_cannot_take_is_refused_with_the_plan(self):
        network = {"architecture": "unet", "options": {"widths": [4, 8, 16, 32]}}
        with pytest.raises(PlanError, match=r"one voxel at stride \(8, 8, 8\)"):
            new_network(Plan.parse({**PLAN, "patch": [8, 8, 8], "network": network}))
        network = {"architecture": "unet_original", "options": {"width": 2, "border": "none"}}
        with pytest.raises(PlanError, match="gives fewer voxels than it takes; choose border='mirror'"):
            new_network(Plan.parse({**PLAN, "patch": [132, 132, 116], "network": network}))
        with pytest.raises(PlanError, match="instead of 101 give 100 or 108, or choose border='mirror'"):
            new_network(Plan.parse({**PLAN, "patch": [132, 132, 101], "network": network}))

    def test_a_batch_of_one_voxel_is_refused_where_its_norm_cannot_take_it(self):
        for norm, wrong in (("instance", 1), ("batch", 1), ("group", 0), ("none", 0)):
            network = build("unet", axes=2, in_channels=1, out_channels=2, widths=[4, 8, 16], norm=norm)
            if wrong:
                with pytest.raises(ShapeMismatch, match=rf"one voxel at stride \(4, 4\), too few for {norm} norm"):
                    network.train()(torch.zeros(1, 1, 4, 3))
            else:
                assert network.train()(torch.zeros(1, 1, 4, 3)).shape == (1, 2, 4, 3)
        network = build("unet", axes=2, in_channels=1, out_channels=2, widths=[4, 8, 16], norm="batch")
        assert network.eval()(torch.zeros(1, 1, 4, 3)).shape == (1, 2, 4, 3)

    @pytest.mark.parametrize("name", ["axes", "in_channels", "architecture"])
    def test_options_that_the_plan_itself_gives_are_refused(self, name):
        network = {"architecture": "unet", "options": {name: 2}}
        with pytest.raises(PlanError, match=f"network options name {name}"):
            new_network(Plan.parse({**PLAN, "network": network}))

    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_monstrous_options_are_one_line(self, name):
        width = {"widths": [10**12] * 3} if name.startswith("unet") and name != "unet_original" else {"width": 10**12}
        with pytest.raises(PlanError, match=f"'{name}' cannot be made") as caught:
            build(name, axes=3, in_channels=1, out_channels=2, **width)
        assert "\n" not in str(caught.value)

    def test_weights_that_do_not_fit_are_refused(self):
        plan = Plan.parse(PLAN)
        weights = {key: tensor.numpy() for key, tensor in new_network(plan).state_dict().items()}
        other = Plan.parse({**PLAN, "network": {"architecture": "unet", "options": {"widths": [4, 16]}}})
        with pytest.raises(BundleError, match="do not fit the network"):
            load_network(Bundle.of([weights], plan=other, card=CARD))


class TestFCN:
    @pytest.mark.parametrize("name", ["fcn32s", "fcn16s", "fcn8s", "hypercolumn"])
    @pytest.mark.parametrize("axes", [2, 3])
    def test_a_mirrored_image_gives_the_mirrored_answer_when_the_kernels_are_symmetric(self, name, axes):
        """Any shift, of half a voxel even, would break it."""
        torch.manual_seed(0)
        options = {"width": 4} if name == "hypercolumn" else {"width": 4, "fc_width": 8}
        network = build(name, axes=axes, in_channels=1, out_channels=2, **options).eval()
        with torch.no_grad():
            for key, weight in network.named_parameters():
                if weight.ndim > 2:
                    for axis in range(2, weight.ndim):
                        weight.copy_((weight + weight.flip(axis)) / 2)
                if "skip_scores" in key:
                    weight.normal_()
        x = torch.randn(1, 1, *[64] * axes)
        for axis in range(2, 2 + axes):
            assert torch.allclose(network(x.flip(axis)), network(x).flip(axis), atol=1e-4)

    @pytest.mark.parametrize("name", ["fcn32s", "fcn16s", "fcn8s", "hypercolumn"])
    def test_an_impulse_is_answered_where_it_is(self, name):
        """On an odd size: over the places of one cell, the answers to an impulse lie around it, not beside it."""
        network = _all_positive(build(name, axes=2, in_channels=1, out_channels=1, width=2)).eval()
        shifts = []
        for place in range(512, 544):
            x = torch.zeros(1, 1, 1083, 5)
            x[0, 0, place] = 1
            profile = network(x)[0, 0, :, 2].detach().double()
            shifts.append(float((profile * torch.arange(len(profile))).sum() / profile.sum()) - place)
        assert np.mean(shifts) == pytest.approx(0, abs=0.05)
        assert np.abs(shifts).max() < 16  # within its cell of 32

    def test_the_papers_offsets_follow_from_its_padding(self):
        """Each layer maps cell a to the centre scale * a + at; an offset is the difference of two centres."""

        def of_upsampling(scale, at, factor):  # kernel 2 * factor, no padding: cell a lies at factor * a + factor - 1/2
            return scale // factor, at - scale // factor * (factor - 0.5)

        first = -99  # conv1_1 is padded by 100 where its kernel takes 1
        pool3, pool4, pool5 = (8, 3.5 + first), (16, 7.5 + first), (32, 15.5 + first)
        fc7 = (32, pool5[1] + 3 * 32)  # the unpadded kernel of 7 begins with its middle on cell 3
        assert -of_upsampling(*fc7, 32)[1] == 19  # 32s
        twice = of_upsampling(*fc7, 2)
        assert (twice[1] - pool4[1]) / 16 == 5  # 16s: the crop of pool4, then that of the scores
        assert -of_upsampling(*twice, 16)[1] == 27
        four_times = of_upsampling(*twice, 2)
        assert (four_times[1] - pool3[1]) / 8 == 9  # 8s
        assert -of_upsampling(*four_times, 8)[1] == 31

    def test_a_finer_network_begins_with_the_answer_of_the_coarser_one(self):
        torch.manual_seed(0)
        options = {"axes": 2, "in_channels": 1, "out_channels": 2, "width": 4, "fc_width": 16}
        networks = [build(name, **options).eval() for name in ("fcn32s", "fcn16s", "fcn8s")]
        x = torch.randn(1, 1, 128, 128)
        for coarse, fine, fresh in zip(networks, networks[1:], ([0], [1]), strict=False):
            left = start_from(fine, coarse.state_dict())
            assert left == [f"skip_scores.{n}.{part}" for n in fresh for part in ("weight", "bias")]
            difference = (coarse(x) - fine(x)).abs().mean() / coarse(x).std()
            assert difference < 0.1  # two linear interpolations in place of one
        with pytest.raises(PlanError, match="none of the weights fits"):
            start_from(networks[0], {"other": torch.zeros(1)})

    def test_training_can_start_from_the_coarser_one(self):
        scan = smooth_scan((40, 40, 6))
        sample = Sample(scan.array / 300, (scan.array > 300).astype(np.uint8))
        options = {"width": 2, "fc_width": 8}
        coarse = fit([sample], plan_of("fcn32s", options, 2, channels=1, labels=1), Recipe(steps=2))
        fine = fit([sample], plan_of("fcn16s", options, 2, channels=1, labels=1), Recipe(steps=1, rate=0), start=coarse)
        assert np.array_equal(fine["fc6.weight"], coarse["fc6.weight"])

    def test_learned_upsampling_begins_as_the_fixed_one(self):
        """Away from the border, where a transposed convolution fades towards zero."""
        torch.manual_seed(0)
        options = {"axes": 2, "in_channels": 1, "out_channels": 2, "width": 2, "fc_width": 8}
        fixed, learned = (build("fcn8s", learned=learned, **options).eval() for learned in (False, True))
        start_from(learned, fixed.state_dict())
        x = torch.randn(1, 1, 224, 224)
        middle = (..., slice(80, 144), slice(80, 144))
        assert torch.allclose(learned(x)[middle], fixed(x)[middle], atol=1e-4)
        assert not torch.allclose(learned(x), fixed(x), atol=1e-4)
        assert learned.to_input.weight.requires_grad
        flat = build("fcn8s", axes=2, in_channels=1, out_channels=1, learned=True, width=2).to_input
        ramp = torch.arange(20.0).repeat(20, 1)[None, None]
        expected = functional.interpolate(ramp, scale_factor=8, mode="bilinear")
        assert torch.allclose(flat(ramp)[..., 8:-8, 8:-8], expected[..., 8:-8, 8:-8], atol=1e-4)

    def test_at_its_papers_width_it_has_the_parameters_of_vgg_16(self):
        """134 M (Long et al. 2015, table 1), with 21 classes; without our norms."""
        with torch.device("meta"):
            network = build("fcn32s", axes=2, in_channels=3, out_channels=21, width=64, norm="none")
        vgg = 138_357_544 - (4096 * 1000 + 1000)  # without the classifier of its 1000 classes
        assert sum(parameter.numel() for parameter in network.parameters()) == vgg + 4096 * 21 + 21

    @pytest.mark.parametrize("options", [{"width": 0}, {"fc_width": 0}, {"width": -3}])
    def test_impossible_widths_are_refused(self, options):
        with pytest.raises(PlanError, match="give a positive one"):
            build("fcn8s", axes=2, in_channels=1, out_channels=2, **options)

    @pytest.mark.parametrize("options", [{"finest": 4}, {"fc_kernel": 6}])
    def test_other_strides_and_even_kernels_are_refused(self, options):
        with pytest.raises(PlanError, match="give 32, 16 or 8, and an odd kernel"):
            build("fcn8s", axes=2, in_channels=1, out_channels=2, **options)


class TestHypercolumn:
    @pytest.mark.parametrize("axes", [2, 3])
    def test_classifying_before_upsampling_equals_classifying_the_column_itself(self, axes):
        torch.manual_seed(0)
        network = build("hypercolumn", axes=axes, in_channels=1, out_channels=3, width=4, stages=[1, 3, 5]).eval()
        x = torch.randn(1, 1, *[32] * axes)
        columns, features = [], x
        for number, stage in enumerate(network.stages, start=1):
            features = stage(features if number == 1 else network.pool(features))
            if number in (1, 3, 5):
                mode = {2: "bilinear", 3: "trilinear"}[axes]
                columns.append(functional.interpolate(features, scale_factor=2.0 ** (number - 1), mode=mode))
        weight = torch.cat([network.classifiers[n].weight for n in "135"], dim=1)
        bias = sum(network.classifiers[n].bias for n in "135")
        convolution = {2: functional.conv2d, 3: functional.conv3d}[axes]
        assert torch.allclose(network(x), convolution(torch.cat(columns, dim=1), weight, bias), atol=1e-4)

    def test_the_grid_interpolates_between_its_classifiers(self):
        network = build("hypercolumn", axes=2, in_channels=1, out_channels=1, width=2, stages=[1], grid=2).eval()
        classifier = network.classifiers["1"]
        nn.init.zeros_(classifier.weight)
        with torch.no_grad():
            classifier.bias.copy_(torch.tensor([0.0, 10.0, 100.0, 110.0]))  # (0, 0), (0, 1), (1, 0), (1, 1)
        found = network(torch.zeros(1, 1, 8, 4))[0, 0]
        along_j = torch.tensor([0.0, 2.5, 7.5, 10.0])  # classifiers stand at a quarter and three quarters
        along_i = torch.tensor([0.0, 0.0, 12.5, 37.5, 62.5, 87.5, 100.0, 100.0])
        assert torch.allclose(found, along_i[:, None] + along_j)

    @pytest.mark.parametrize("options", [{"stages": []}, {"stages": [0, 1]}, {"stages": [6]}, {"grid": 0}])
    def test_impossible_stages_and_grids_are_refused(self, options):
        with pytest.raises(PlanError, match="give stages from 1 to 5, and a positive grid"):
            build("hypercolumn", axes=2, in_channels=1, out_channels=2, **options)


class TestUNet:
    def test_deep_supervision_gives_coarser_logits_in_training_only(self):
        network = build("unet", axes=3, in_channels=1, out_channels=2, widths=[4, 8, 16, 32], deep_supervision=True)
        x = torch.randn(1, 1, 17, 16, 16)
        assert [tuple(part.shape[2:]) for part in network.train()(x)] == [(17, 16, 16), (9, 8, 8), (5, 4, 4)]
        assert network.eval()(x).shape == (1, 2, 17, 16, 16)

    def test_strides_and_kernels_may_differ_by_axis(self):
        options = {"widths": [4, 8, 16], "strides": [[2, 2, 1], 2], "kernels": [[3, 3, 1], 3, 3]}
        network = build("unet", axes=3, in_channels=1, out_channels=2, **options)
        assert network.stride == (4, 4, 2)
        assert network(torch.randn(1, 1, 9, 8, 3)).shape == (1, 2, 9, 8, 3)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"strides": [2, 2, 2]}, "one stride fewer than widths"),
            ({"kernels": [3]}, "as many kernels as widths"),
            ({"widths": [4]}, "at least 2 positive widths"),
            ({"kernels": [3, 4]}, r"kernel \[4, 4, 4\] is even and has no middle: use \[5, 5, 5\]"),
            ({"strides": [[2, 2]]}, r"\[2, 2\] does not fit 3 axes"),
            ({"upsampling": "magic"}, "choose one of transposed, resize, shuffle, linear"),
            ({"upsampling_options": {"kernel": 3}}, "kernel 3 overlaps unevenly at stride 2: use 2 or 4"),
            ({"upsampling_options": {"nonsense": 3}}, "nonsense"),
        ],
    )
    def test_options_that_do_not_fit_are_refused(self, options, message):
        with pytest.raises(PlanError, match=message):
            build("unet", axes=3, in_channels=1, out_channels=2, **{"widths": [4, 8], **options})

    def test_an_attention_gate_can_close_a_skip_connection(self):
        network = build("unet_attention", axes=2, in_channels=1, out_channels=2, widths=[4, 8])
        gate = network.ups[0].gate
        skip, coarse = torch.randn(1, 4, 7, 9), torch.randn(1, 8, 4, 5)
        nn.init.zeros_(gate.weight.weight)
        nn.init.constant_(gate.weight.bias, -50)
        assert gate(skip, coarse).abs().max() < 1e-12
        nn.init.constant_(gate.weight.bias, 50)
        assert torch.allclose(gate(skip, coarse), skip)


class TestUNetOriginal:
    def test_without_a_border_the_sizes_are_those_of_the_papers(self):
        with torch.device("meta"):
            flat = build("unet_original", axes=2, in_channels=1, out_channels=2, border="none")
            solid = build("unet_original", axes=3, in_channels=3, out_channels=3, border="none")
            assert flat(torch.empty(1, 1, 572, 572)).shape == (1, 2, 388, 388)
            assert solid(torch.empty(1, 3, 132, 132, 116)).shape == (1, 3, 44, 44, 28)

    def test_in_3d_it_has_the_parameters_of_the_paper(self):
        """19 069 955 (Çiçek et al. 2016), where norms and the biases of the up-convolutions are not counted."""
        with torch.device("meta"):
            network = build("unet_original", axes=3, in_channels=3, out_channels=3)
        norms = sum(
            p.numel() for layer in network.modules() if isinstance(layer, nn.BatchNorm3d) for p in layer.parameters()
        )
        biases = sum(layer.bias.numel() for layer in network.enlarge)
        assert sum(parameter.numel() for parameter in network.parameters()) - norms - biases == 19_069_955

    def test_a_size_that_does_not_fit_is_answered_with_the_nearest_that_do(self):
        network = build("unet_original", axes=2, in_channels=1, out_channels=2, width=2, border="none")
        with pytest.raises(ShapeMismatch, match="instead of 570 give 556 or 572, or choose border='mirror'"):
            network(torch.zeros(1, 1, 572, 570))
        with pytest.raises(ShapeMismatch, match="instead of 64 give 188,"):
            network(torch.zeros(1, 1, 64, 64))
        for size in (188, 204, 572):
            assert network(torch.zeros(1, 1, size, 188)).shape == (1, 2, size - 184, 4)

    @pytest.mark.parametrize("options", [{"border": "wrap"}, {"stages": 1}, {"width": 1}])
    def test_impossible_borders_stages_and_widths_are_refused(self, options):
        with pytest.raises(PlanError, match="give mirror or none, and at least 2 each"):
            build("unet_original", axes=3, in_channels=1, out_channels=2, **options)

    @pytest.mark.parametrize(("axes", "size"), [(2, (100, 37)), (3, (50, 47, 20))])
    def test_the_mirrored_border_is_that_of_numpy(self, axes, size):
        torch.manual_seed(0)
        options = {"axes": axes, "in_channels": 1, "out_channels": 2, "width": 2, "stages": 3}
        mirror = build("unet_original", **options).eval()
        bare = build("unet_original", border="none", **options).eval()
        bare.load_state_dict(mirror.state_dict())
        x = torch.randn(1, 1, *size)
        pads = [(bare.margin, bare._input_size(n) - n - bare.margin) for n in size]
        larger = torch.from_numpy(np.pad(x.numpy(), [(0, 0), (0, 0), *pads], mode="reflect"))
        expected = bare(larger)[(..., *map(slice, size))]
        assert torch.allclose(mirror(x), expected, atol=1e-5)


class TestNeeds:
    def test_receptive_fields_are_those_of_the_papers(self):
        """VGG-16 sees 404 pixels from fc6 (Long et al.); interpolation by 32 between two cells adds 32.

        A U-Net of two stages: two convolutions see 5 voxels, which touch 3 coarse cells; a convolution between cells
        makes them 5, a strided one 11 voxels, and the first two convolutions 15.
        """
        assert receptive_field("fcn32s", axes=2) == (404 + 32,) * 2
        assert receptive_field("unet", axes=2, widths=[4, 8]) == (15, 15)

    def test_anisotropic_steps_give_anisotropic_fields(self):
        options = {"widths": [4, 8, 16], "strides": [[2, 2, 1], 2], "kernels": [[3, 3, 1], 3, 3]}
        fields = receptive_field("unet", axes=3, **options)
        assert fields[0] == fields[1] > fields[2]

    def test_operations_and_memory_of_a_hypercolumn_by_hand(self):
        found = needs("hypercolumn", axes=2, in_channels=1, out_channels=2, width=4, stages=[1], norm="none")
        assert found.parameters == (9 * 1 * 4 + 4) + (9 * 4 * 4 + 4) + (4 * 2 + 2)
        assert found.flops_per_voxel == 2 * (9 * 1 * 4 + 9 * 4 * 4 + 4 * 2)
        assert found.stride == (1, 1)
        assert found.receptive_field == (5, 5)
        maps = 1 + 4 + 4  # the input, and the two ReLUs, in whose place the convolutions' outputs were
        assert maps * 4 <= found.activations_per_voxel <= (maps + 3) * 4

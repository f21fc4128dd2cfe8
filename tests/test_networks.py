"""Every architecture keeps one contract, in 2D and 3D; the U-Net's own parts."""

import pytest
import torch
from conftest import PLAN

from medseg.errors import PlanError
from medseg.networks import ARCHITECTURES, build
from medseg.plan import Plan

CASES = [
    ("unet", {"widths": [4, 8, 16]}),
    ("unet", {"widths": [4, 8, 16], "residual": True}),
    ("unet", {"widths": [4, 8, 16], "deep_supervision": True}),
]


class NetworkContract:
    """How a network under the contract is made, and a size that it takes."""

    def make(self, name, options, axes):
        torch.manual_seed(0)
        return build(name, axes=axes, in_channels=2, out_channels=3, options=options)

    def size(self, network):
        return [2 * steps for steps in network.divisor]


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize(("name", "options"), CASES)
class TestContract(NetworkContract):
    def test_it_maps_any_divisible_size_to_logits_of_that_size(self, name, options, axes):
        network = self.make(name, options, axes).eval()
        assert len(network.divisor) == axes
        for factor in (1, 2):
            size = [factor * n for n in self.size(network)]
            assert network(torch.randn(2, 2, *size)).shape == (2, 3, *size)

    def test_every_parameter_learns(self, name, options, axes):
        network = self.make(name, options, axes).train()
        answer = network(torch.randn(2, 2, *self.size(network)))
        sum(part.square().mean() for part in (answer if isinstance(answer, list) else [answer])).backward()
        for key, parameter in network.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.abs().sum() > 0, key

    def test_the_same_weights_give_the_same_answer(self, name, options, axes):
        one, two = self.make(name, options, axes).eval(), self.make(name, options, axes).eval()
        x = torch.randn(1, 2, *self.size(one))
        assert torch.equal(one(x), two(x))
        two.load_state_dict(one.state_dict())

    def test_cases_of_a_batch_do_not_touch_each_other(self, name, options, axes):
        network = self.make(name, options, axes).eval()
        x = torch.randn(2, 2, *self.size(network))
        assert torch.allclose(network(x)[:1], network(x[:1]), atol=1e-5)


def test_every_architecture_is_under_the_contract():
    assert {name for name, _ in CASES} == set(ARCHITECTURES)


def test_deep_supervision_gives_coarser_logits_in_training_only():
    network = build("unet", axes=3, in_channels=1, out_channels=2, options=CASES[2][1] | {"widths": [4, 8, 16, 32]})
    x = torch.randn(1, 1, 16, 16, 16)
    assert [tuple(part.shape[2:]) for part in network.train()(x)] == [(16,) * 3, (8,) * 3, (4,) * 3]
    assert network.eval()(x).shape == (1, 2, 16, 16, 16)


def test_strides_and_kernels_may_differ_by_axis():
    options = {"widths": [4, 8, 16], "strides": [[2, 2, 1], 2], "kernels": [[3, 3, 1], 3, 3]}
    network = build("unet", axes=3, in_channels=1, out_channels=2, options=options)
    assert network.divisor == (4, 4, 2)
    assert network(torch.randn(1, 1, 8, 8, 4)).shape == (1, 2, 8, 8, 4)


@pytest.mark.parametrize("options", [{"strides": [2, 2, 2]}, {"kernels": [3]}, {"nonsense": 1}])
def test_options_that_do_not_fit_are_refused(options):
    with pytest.raises(PlanError, match="unet"):
        build("unet", axes=3, in_channels=1, out_channels=2, options={"widths": [4, 8], **options})


def test_an_unknown_architecture_is_answered_with_the_known_ones():
    with pytest.raises(PlanError, match="choose one of: unet"):
        build("nonsense", axes=3, in_channels=1, out_channels=2)


def test_an_architecture_of_another_package_is_found_by_its_entry_point(monkeypatch):
    class Entry:
        def load(self):
            return ARCHITECTURES["unet"]

    monkeypatch.setattr("medseg.networks.entry_points", lambda group, name: [Entry()] if name == "other" else [])
    assert Plan.parse({**PLAN, "network": {"architecture": "other"}})
    network = build("other", axes=2, in_channels=1, out_channels=2, options={"widths": [4, 8]})
    assert network(torch.randn(1, 1, 4, 4)).shape == (1, 2, 4, 4)


def test_an_architecture_without_a_divisor_is_refused(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "flat", lambda axes, a, b: torch.nn.Conv3d(a, b, 1))
    with pytest.raises(PlanError, match="divisor"):
        build("flat", axes=3, in_channels=1, out_channels=2)

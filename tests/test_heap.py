"""What torch's layers take stays with the process between calls, and goes back when a pass is over."""

import platform

import pytest
import torch
from conftest import random_bundle, smooth_scan

from medseg.errors import DeviceError
from medseg.inference import Predictor, heap
from medseg.inference.backends import torch_any
from medseg.inference.memory import resident

MB = 10**6
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told what to keep")


@glibc
def test_memory_stays_while_it_is_kept_and_goes_back_in_the_end():
    heap.give_back()
    before = resident()
    with heap.kept():
        torch.ones(50 * MB)
    assert resident() - before > 150 * MB
    heap.give_back()
    assert resident() - before < 50 * MB


@pytest.mark.parametrize(("memory", "light", "times"), [(None, 1 << 26, 2), (None, 1 << 10, 0), (10**10, 1 << 26, 0)])
def test_memory_is_kept_from_the_second_window_on_where_answers_are_light_and_memory_is_not_limited(
    memory, light, times, monkeypatch
):
    calls = []
    monkeypatch.setattr(torch_any, "kept", lambda: calls.append(1) or heap.kept())
    monkeypatch.setattr(torch_any, "_LIGHT", light)
    predictor = Predictor(random_bundle(), device="cpu", backend="torch", memory=memory)
    predictor(smooth_scan((16, 16, 32)))
    assert len(calls) == times


@glibc
def test_a_pass_that_fails_gives_it_back(monkeypatch):
    given = []
    monkeypatch.setattr("medseg.inference.stage.give_back", lambda: given.append(1))
    predictor = Predictor(random_bundle(), device="cpu", backend="torch")
    predictor._stage.backend._network = lambda windows: torch.full((1, 3, 16, 16, 16), float("nan"))
    with pytest.raises(DeviceError, match="not finite"):
        predictor(smooth_scan((16, 16, 32)))
    assert given == [1]


@glibc
def test_an_error_ends_it_too():
    heap.give_back()
    with pytest.raises(KeyError), heap.kept():
        raise KeyError
    before = resident()
    block = torch.ones(50 * MB)
    assert resident() - before > 150 * MB
    del block
    assert resident() - before < 50 * MB


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(heap.sys, "platform", "darwin")
    heap._glibc.cache_clear()
    with heap.kept():
        assert heap._glibc() is None
    heap.give_back()
    monkeypatch.undo()
    heap._glibc.cache_clear()

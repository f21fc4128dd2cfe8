"""What torch's layers take stays with the process between calls, and goes back when a pass is over."""

import platform

import pytest
import torch

from medseg.inference import heap
from medseg.inference.memory import resident

MB = 10**6
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told what to keep")


@glibc
def test_memory_stays_while_it_is_kept_and_goes_back_in_the_end():
    heap.give_back()
    before = resident()
    for _ in range(5):
        with heap.kept():
            layer = torch.ones(50 * MB)
        del layer
        assert 150 * MB < resident() - before < 650 * MB  # of 200 MB each; a few may lie between other things
    heap.give_back()
    assert resident() - before < 50 * MB


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

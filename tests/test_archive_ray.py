"""How the nodes of a Ray cluster are shared out; the cluster itself is in faults/test_ray.py."""

import pytest

from medseg.archive import Settings
from medseg.archive.ray_posts import Share, shares
from medseg.errors import DeviceError, UsageError


def node(name, *, cores, gpus=0, alive=True):
    having = {"CPU": float(cores), "memory": 1e9} | ({"GPU": float(gpus)} if gpus else {})
    return {"NodeID": name, "Alive": alive, "Resources": having}


def test_each_gpu_gets_one_and_its_part_of_the_cores():
    nodes = [node("a", cores=16, gpus=2), node("b", cores=3, gpus=1), node("c", cores=64)]
    assert shares(nodes, Settings(), 1) == [Share("a", 8, 1, 8), Share("a", 8, 1, 8), Share("b", 3, 1, 3)]


def test_several_workers_share_a_gpu():
    assert shares([node("a", cores=9, gpus=1)], Settings(device="cuda"), 2) == [Share("a", 4, 0.5, 4)] * 2


def test_without_gpus_each_node_with_cores_gets_one():
    nodes = [node("head", cores=0), node("a", cores=8), node("b", cores=2), node("gone", cores=8, alive=False)]
    assert shares(nodes, Settings(), 1) == [Share("a", 8, 0, 8), Share("b", 2, 0, 2)]
    assert shares(nodes, Settings(), 4)[-1] == Share("b", 0.5, 0, 1)
    assert len(shares(nodes, Settings(), 4)) == 8


def test_few_threads_take_few_cores_and_many_take_no_more_than_there_are():
    assert shares([node("a", cores=8)], Settings(threads=2), 1) == [Share("a", 2, 0, 2)]
    assert shares([node("a", cores=8)], Settings(threads=32), 1) == [Share("a", 8, 0, 32)]


def test_the_cpu_is_used_where_the_user_says_so():
    assert shares([node("a", cores=8, gpus=2)], Settings(device="cpu"), 1) == [Share("a", 8, 0, 8)]


def test_what_a_cluster_cannot_give_is_told():
    with pytest.raises(DeviceError, match="no GPU"):
        shares([node("a", cores=8)], Settings(device="cuda"), 1)
    with pytest.raises(DeviceError, match="no cores"):
        shares([node("head", cores=0)], Settings(), 1)
    with pytest.raises(UsageError, match="Ray chooses"):
        shares([node("a", cores=8, gpus=2)], Settings(device="cuda:1"), 1)


def test_a_machine_without_ray_is_told_before_the_archive_is_listed(run, tmp_path, monkeypatch):
    def listed(*words):
        raise AssertionError("the archive was listed")

    monkeypatch.setattr("medseg.archive.index.Index.refresh", listed)
    monkeypatch.setattr("medseg.archive.ray_posts.find_spec", lambda name: None)
    (tmp_path / "archive").mkdir()
    code, _, err = run("batch", tmp_path / "archive", "-o", tmp_path / "out", "-m", "hippocampus-t1", "--engine", "ray")
    assert (code, "Ray is not installed; pip install 'medseg[ray]'" in err) == (2, True)

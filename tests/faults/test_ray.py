"""A run on a Ray cluster: nodes and actors die, and nothing is lost, done twice, or told to others.

The nodes are processes of this computer. One node without cores leads them, so that any other may die.
"""

import os
import signal
import subprocess
import warnings
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE

import pytest
from trials import MISDEEDS, assert_all_same, trial_in

pytestmark = pytest.mark.slow
SCANS = 30
STORE = 100 * 2**20  # bytes, of each node
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "TRIAL_SLOW": "0.3"}  # seconds that each scan takes to read
SITE = f"""
import os, sys
if "default_worker.py" in " ".join(sys.orig_argv):
    {MISDEEDS.strip().replace(chr(10), chr(10) + "    ")}
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A trial with 30 scans, and a run of it without Ray in the folder `clean`."""
    pytest.importorskip("ray", reason="ray is not installed")
    with trial_in(tmp_path_factory.mktemp("ray")) as one:
        one.scans(SCANS, dicom=5)
        clean = one.folder / "clean"
        assert one.run("--no-picture", "--threads", 1, out=clean).code == 0
        yield one, clean


@pytest.fixture(scope="module")
def cluster(whole):
    """A Ray cluster of one node without cores, whose actors read slowly and do what the name of a scan says."""
    trial, _ = whole
    (trial.folder / "site" / "sitecustomize.py").write_text(SITE)
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        for name, value in {**trial.env, **QUIET}.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE}
        one = Cluster(initialize_head=True, head_node_args=head)
        try:
            yield one
        finally:
            one.shutdown()


@pytest.fixture
def nodes(cluster):
    """Two nodes with a core each."""
    some = [cluster.add_node(num_cpus=1, object_store_memory=STORE) for _ in range(2)]
    yield some
    for node in some:
        if node in cluster.worker_nodes:
            cluster.remove_node(node, allow_graceful=False)


def on(cluster):
    return ("--no-picture", "--engine", f"ray:{cluster.address}")


def children(number):
    """Return the processes that a process started and that live, with the words by which they are known."""
    found = {}
    for folder in Path("/proc").iterdir():
        with suppress(OSError, IndexError):
            if folder.name.isdigit():
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                if int(parent) == number and state != "Z":
                    found[int(folder.name)] = (folder / "cmdline").read_text()
    return found


def actors(node):
    """Return the processes of a node that hold a model."""
    (raylet,) = node.all_processes["raylet"]
    return [number for number, words in children(raylet.process.pid).items() if "Seat" in words]


def begin(trial, words, change):
    """Start the command with less patience."""
    program = f"from medseg import cli; from medseg.archive import ray_posts; ray_posts.{change}; cli.main()"
    words = [words[0], "-c", program, *words[3:]]
    return subprocess.Popen(words, stdout=PIPE, stderr=PIPE, text=True, cwd=trial.folder, env=trial.env)


def ended(process, seconds=120):
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def test_two_nodes_give_what_one_computer_gives(whole, cluster, nodes):
    trial, clean = whole
    out = trial.folder / "plain"
    process = trial.start(*on(cluster), out=out)
    trial.wait_for(10, process, out)
    assert [len(actors(node)) for node in nodes] == [1, 1]
    code, said, err = ended(process)
    assert (code, err) == (0, ""), said
    trial.check_complete(SCANS, out=out)
    assert_all_same(out, clean)
    assert [len(actors(node)) for node in nodes] == [0, 0]
    again = trial.run(*on(cluster), out=out)
    assert again.code == 0
    assert len(trial.log(out)) == SCANS


def test_an_actor_and_a_node_die_and_nothing_is_lost_or_done_twice(whole, cluster, nodes):
    trial, clean = whole
    out = trial.folder / "deaths"
    process = trial.start(*on(cluster), out=out)
    trial.wait_for(4, process, out)
    for number in actors(nodes[0]):
        os.kill(number, signal.SIGKILL)
    trial.wait_for(10, process, out)
    cluster.remove_node(nodes[1], allow_graceful=False)
    left = SCANS - trial.states(out)["done"]
    assert left > 3, "too late to tell"
    code, said, err = ended(process)
    assert (code, err) == (0, ""), said
    trial.check_complete(SCANS, out=out)
    assert_all_same(out, clean)


def test_a_run_that_is_killed_goes_on_where_it_was(whole, cluster, nodes):
    trial, clean = whole
    out = trial.folder / "killed"
    process = trial.start(*on(cluster), out=out)
    trial.wait_for(6, process, out)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert trial.states(out)["running"]
    again = trial.run(*on(cluster), out=out)
    assert (again.code, again.err) == (0, "")
    trial.check_complete(SCANS, out=out)
    assert_all_same(out, clean)


def test_scans_that_hang_or_kill_are_failures_of_their_own(whole, cluster, nodes):
    trial, clean = whole
    own = trial.folder / "misdeeds"
    with trial_in(own) as other:
        other.env, other.model, other.key = trial.env, trial.model, trial.key
        other.scans(8)
        for name in ("hang", "deaf", "die"):
            other.scan(f"{name}.nii.gz")
        done = other.run(*on(cluster), "--time-limit", "15s")
        assert (done.code, done.err) == (1, "")
        rows = [row for row in other.ledger().values() if row["state"] == "failed"]
        assert sorted(row["code"] for row in rows) == ["TIME_LIMIT", "TIME_LIMIT", "WORKER_DIED"]
        other.check_complete(8, 3)
        assert_all_same(other.out, clean)


def test_without_any_node_the_run_ends_and_goes_on_elsewhere(whole, cluster, nodes):
    trial, clean = whole
    out = trial.folder / "alone"
    process = begin(trial, trial.words(*on(cluster), out=out), "_PATIENCE = 6")
    trial.wait_for(5, process, out)
    for node in nodes:
        cluster.remove_node(node, allow_graceful=False)
    code, said, err = ended(process)
    assert code == 2, said
    assert "no node of the Ray cluster has had room for a worker for 6 s" in err
    assert not trial.states(out)["running"]
    assert len(err.splitlines()) == 1
    again = trial.run("--no-picture", "--threads", 1, out=out)
    assert (again.code, again.err) == (0, "")
    trial.check_complete(SCANS, out=out)
    assert_all_same(out, clean)


def test_a_cluster_of_its_own_tells_nobody_and_drains_at_a_signal(whole):
    trial, clean = whole
    out = trial.folder / "own"
    with trial_in(trial.folder / "Roe^Canary") as other:
        other.env, other.model, other.key = {**trial.env, **QUIET}, trial.model, trial.key
        other.env.pop("RAY_USAGE_STATS_ENABLED")
        other.scans(12)
        process = other.start("--no-picture", "--engine", "ray", out=out)
        other.wait_for(2, process, out)
        (server,) = [number for number, words in children(process.pid).items() if "gcs_server" in words]
        assert b"RAY_USAGE_STATS_ENABLED=0" in Path(f"/proc/{server}/environ").read_bytes()
        words = Path(f"/proc/{server}/cmdline").read_text()
        folder = Path(words.partition("--log_dir=")[2].partition("\0")[0]).parent
        assert folder.name.startswith("session_")
        process.send_signal(signal.SIGTERM)
        code, said, err = ended(process)
        assert (code, err) == (1, ""), said
        assert "stopped by a signal" in said
        states = other.states(out)
        assert not states["running"]
        assert 2 < states["done"] < 12
        assert not other.processes("gcs_server")
        assert not [*folder.rglob("usage_stats.json")]
        files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
        assert files
        for path in files:
            assert b"Canary" not in path.read_bytes(), path
        again = other.run("--no-picture", "--engine", "ray", out=out)
        assert (again.code, again.err) == (0, "")
        other.check_complete(12, out=out)
        assert_all_same(out, clean)


def test_an_address_where_nobody_is_is_told(whole):
    trial, _ = whole
    words = trial.words("--no-picture", "--engine", "ray:127.0.0.1:1", out=trial.folder / "nobody")
    code, _, err = ended(begin(trial, words, "_KNOCK = 3"))
    assert code == 2
    assert len(err.splitlines()) == 1, err
    assert "no Ray cluster answers at 127.0.0.1:1" in err

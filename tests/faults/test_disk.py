"""A disk that is full, or must not be written to: an error in one line, nothing half-written, and the way on."""

import pytest
from trials import assert_all_same, mounted, remount, trial_in, visible

SCANS = 6
LARGE = "size=64m,nr_inodes=100000"
PAGE = 4  # kB: a file system in memory is filled in such steps


@pytest.fixture
def trial(tmp_path):
    with trial_in(tmp_path) as one:
        yield one


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A trial with a few studies, and a run of it on a large disk, in the folder `clean`."""
    with trial_in(tmp_path_factory.mktemp("disk")) as one:
        one.scans(SCANS, dicom=2)
        clean = one.folder / "clean"
        assert one.run("--no-picture", out=clean).code == 0
        yield one, clean


def check_says_full(ended) -> None:
    assert ended.code == 2, (ended.code, ended.out, ended.err)
    lines = ended.err.splitlines()
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("error: "), lines
    kinds = ("ledger", "index", "list of what is to do")
    causes = ("No space left on device", *(f"the {kind} cannot be used" for kind in kinds))
    assert any(cause in lines[0] for cause in causes), lines
    assert "free space" in lines[0]


# Where the small disk is mounted, and its sizes: the whole output folder, the ledger alone, the results alone, or what
# lies beside both (audit log, table, page). The last two are filled by each file, folder and name on its own.
SMALL = [
    *[("", f"size={PAGE * pages}k") for pages in (1, 8, 30, 50, 66, 80)],
    *[("", f"nr_inodes={count}") for count in (2, 3, 5)],
    *[(".medseg", f"size={PAGE * pages}k") for pages in (4, 36, 46)],
    *[("results", f"size={PAGE * pages}k") for pages in (1, 3, 4, 7)],
    *[("results", f"nr_inodes={count}") for count in (1, 3, 6, 7, 15)],
    *[("beside", f"size={PAGE * pages}k") for pages in (1, 2, 4)],
    *[("beside", f"nr_inodes={count}") for count in (4, 5)],
]


@pytest.mark.slow
@pytest.mark.parametrize(("where", "options"), SMALL)
def test_a_full_disk_stops_the_run_in_one_line_and_room_lets_it_go_on(whole, where, options):
    trial, clean = whole
    out = trial.folder / f"{where}-{options}"
    places = {"out": out, "index": trial.folder / f"{out.name}.sqlite"}
    disk = out if where in {"", "beside"} else out / where
    with mounted(disk, LARGE if where == "beside" else options):
        if where == "beside":
            for name in (".medseg", "results"):
                (out / name).mkdir()
            with mounted(out / ".medseg", LARGE), mounted(out / "results", LARGE):
                remount(disk, options)
                check_stop_and_go(trial, clean, disk, places)
        else:
            check_stop_and_go(trial, clean, disk, places)


def check_stop_and_go(trial, clean, disk, places) -> None:
    out = places["out"]
    ended = trial.run("--no-picture", **places)
    check_says_full(ended)
    assert not trial.processes()
    assert_all_same(out, clean)
    remount(disk, LARGE)
    ended = trial.run("--no-picture", **places)
    assert (ended.code, ended.err) == (0, "")
    trial.check_complete(SCANS, out=out)
    assert_all_same(out, clean)
    assert len(visible(out)) == len(visible(clean))


@pytest.mark.parametrize("name", ["index", "key"])
def test_a_full_disk_below_index_or_key_is_told_in_one_line(trial, name):
    trial.scans(1)
    with mounted(trial.folder / "small", "size=4k,nr_inodes=2") as disk:
        (disk / "filler").write_bytes(bytes(4096))
        setattr(trial, name, disk / "file")
        check_says_full(trial.run())
        assert not trial.workers_started()


@pytest.mark.parametrize("name", ["index", "key"])
def test_a_place_for_index_or_key_that_cannot_be_written_is_told_in_one_line(trial, name):
    trial.scans(1)
    setattr(trial, name, trial.folder / "site" / "sitecustomize.py" / "file")
    ended = trial.run()
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1, ended.err
    assert "Not a directory" in ended.err or "File exists" in ended.err


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_computed(trial):
    trial.scans(2)
    with mounted(trial.folder / "disk", "size=1m") as disk:
        (disk / "there").mkdir()
        remount(disk, "ro")
        for out in (disk, disk / "there", disk / "new", trial.folder / "starts" / "out"):
            trial.starts.touch()
            ended = trial.run(out=out)
            assert ended.code == 2
            assert len(ended.err.splitlines()) == 1, ended.err
            assert "cannot be written: Read-only file system" in ended.err or "Not a directory" in ended.err
            assert ended.seconds < 5
    assert not trial.workers_started()


def test_an_output_below_proc_is_refused(trial):
    trial.scans(1)
    ended = trial.run(out="/proc/out")
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert not trial.workers_started()

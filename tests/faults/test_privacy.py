"""Nothing that names a patient leaves an archive but in DICOM objects: strings that shine are looked for everywhere."""

import shutil

import pytest
from trials import MISDEEDS, trial_in, visible

# Each stands for a patient's name, an ID, ..., in one place of one archive, and nowhere else.
UID = "1.2.826.0.1.3680043.8.498.777001777"
CANARIES = ["Kanarek", "CNRYID77", "CNRYSTUDYTEXT", "CNRYSERIESTEXT", "CNRYACC7", "CNRYDOCTOR", "777001777", "19330303"]
NAMES = ["CNRYFOLDER", "CNRYFILE", "sub-CNRYSUB", "ses-CNRYSES", "CNRYARCHIVE", "CNRYLIST", "CNRYZIP"]
TAGS = {
    "PatientName": "Kanarek^Anna",
    "PatientID": "CNRYID77",
    "StudyDescription": "CNRYSTUDYTEXT",
    "SeriesDescription": "CNRYSERIESTEXT",
    "AccessionNumber": "CNRYACC7",
    "ReferringPhysicianName": "CNRYDOCTOR^X",
    "PatientBirthDate": "19330303",
    "StudyDate": "19330303",
}


@pytest.fixture
def trial(tmp_path):
    with trial_in(tmp_path) as one:
        one.archive = tmp_path / "CNRYARCHIVE"
        one.archive.mkdir()
        yield one


def fill(trial) -> None:
    """Make an archive with sound and broken studies, each full of canaries."""
    for number, what in enumerate(("sound", "gap", "cut", "unplaced", "wrecked", "hang")):
        files = trial.series(f"CNRYFOLDER {what}/CNRYFILE", 70 + number, uid=f"{UID}.{number}", **TAGS)
        if what == "gap":
            files[7].unlink()
        if what == "cut":
            files[7].write_bytes(files[7].read_bytes()[:-200])
        if what == "wrecked":
            files[7].write_bytes(files[7].read_bytes()[:400] + b"Kanarek" * 40)
        if what == "hang":
            files[0].rename(files[0].with_name("CNRYFILE hang.dcm"))
    trial.scan("CNRYFOLDER files/CNRYFILE.nii.gz")
    trial.scan("sub-CNRYSUB/ses-CNRYSES/anat/sub-CNRYSUB_ses-CNRYSES_T1w.nii.gz")
    for name, data in (("cut", b"\x1f\x8b\x08Kanarek"), ("empty", b""), ("text", b"Kanarek")):
        (trial.archive / "CNRYFOLDER files" / f"CNRYFILE {name}.nii.gz").write_bytes(data)
    (trial.archive / "CNRYFOLDER files" / "CNRYFILE.mha").write_bytes(b"ObjectType = Kanarek\n")
    (trial.archive / "CNRYFOLDER files" / "CNRYFILE die.nii.gz").write_bytes(b"Kanarek")
    (trial.archive / "CNRYFOLDER files" / "CNRYFILE.nrrd").write_bytes(b"NRRD0004\ntype: Kanarek\n\n")
    shutil.make_archive(str(trial.archive / "CNRYZIP"), "zip", trial.archive / "CNRYFOLDER sound")


def found_in(data: bytes) -> list[str]:
    return [word for word in CANARIES + NAMES if word.encode() in data or word.encode("utf-16-le") in data]


def check_silence(trial, *texts: str, without: str = "") -> None:
    """Check that no canary is in a text, nor in name or content of what lies in the output folder."""
    for text in texts:
        assert not found_in(text.encode()), text
    paths = [path for path in trial.out.rglob("*") if path.suffix != ".dcm"]
    assert len(paths) > 20
    for path in paths:
        place = str(path.relative_to(trial.out))
        if without and place.startswith(without):
            continue
        assert not found_in(place.encode()), place
        if path.is_file():
            assert not found_in(path.read_bytes()), place


@pytest.mark.slow
def test_no_canary_is_anywhere_but_in_dicom_objects(trial):
    fill(trial)
    trial.break_workers(MISDEEDS)
    ended = trial.run("--time-limit", "15s", "--progress", "json")
    assert ended.code == 1
    states = trial.states()
    assert states["done"] >= 4
    assert states["failed"] >= 9
    check_silence(trial, ended.out, ended.err)
    dicom = [path for path in visible(trial.out) if path.suffix == ".dcm"]
    assert any(b"CNRYID77" in path.read_bytes() for path in dicom)  # or there would be nothing to keep quiet about
    for words in (["status", trial.out, "--failed", "--audit"], ["status", trial.out, "--json", "--page"]):
        told = trial.medseg(*words)
        assert told.code == 1
        check_silence(trial, told.out, told.err)


def test_no_canary_is_in_the_ledger_of_a_run_that_was_killed(trial):
    trial.series("CNRYFOLDER/CNRYFILE", 70, uid=UID, **TAGS)
    trial.scan("sub-CNRYSUB/ses-CNRYSES/anat/sub-CNRYSUB_ses-CNRYSES_T1w.nii.gz")
    trial.break_workers()
    process = trial.start("--no-picture", env={"TRIAL_SLOW": "60"})
    while not trial.states()["running"]:
        pass
    process.kill()
    process.communicate()
    found = [path.name for path in (trial.out / ".medseg").iterdir()]
    assert "ledger.sqlite-wal" in found
    for path in (trial.out / ".medseg").iterdir():
        assert not found_in(path.read_bytes()), path


def test_names_that_are_kept_are_not_in_the_audit_log(trial):
    trial.series("CNRYFOLDER/CNRYFILE", 70, uid=UID, **TAGS)
    trial.scan("CNRYFOLDER/CNRYFILE.nii.gz")
    (trial.archive / "CNRYFOLDER" / "CNRYFILE bad.nii.gz").write_bytes(b"Kanarek")
    ended = trial.run("--no-picture", "--keep-names")
    assert ended.code == 1
    assert (trial.out / "results" / "CNRYID77").is_dir()
    log = (trial.out / "audit.jsonl").read_bytes()
    assert log.count(b"\n") == 5
    assert not found_in(log)
    assert not found_in(ended.out.encode() + ended.err.encode())


def test_the_places_of_what_failed_are_told_to_who_asks_for_them_alone(trial):
    (trial.archive / "CNRYFILE.nii.gz").write_bytes(b"Kanarek")
    words = trial.words("--no-picture")
    at = words.index("--key-file")
    del words[at : at + 2]  # by the user's own key
    assert trial.medseg(*words[3:]).code == 1
    assert not found_in(trial.medseg("status", trial.out, "--failed").out.encode())
    assert str(trial.archive / "CNRYFILE.nii.gz") in trial.medseg("status", trial.out, "--failed", "--paths").out

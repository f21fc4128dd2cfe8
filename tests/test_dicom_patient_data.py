"""Patient data stays where it is: a study full of canaries goes through every command, and all that comes out is read.

The commands run in one process of their own, as a user's would: warnings are shown, the root logger is at DEBUG, every
file that is opened for writing is noted, and the folder for temporary files tells by its time whether one was made.
"""

import gzip
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import SAMPLES, random_bundle
from phantoms import series, store
from pydicom import Dataset, dcmread
from pydicom.datadict import DicomDictionary, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

MODEL, TYPED, SHOWN, DATE, TIME = "tiny.safetensors", "TYPEDPATH", "SHOWNSERIES", "19431219", "031337.424242"
SIGNS = re.compile(rf"CANARY|{DATE}|031337|2\.25\.\d{{20}}|\.77777\.", re.IGNORECASE)
IN_PATHS = "CANARY^Doe^Jane"
TEXTS = {"PN", "LO", "SH", "ST", "LT", "UT", "UC", "AE", "CS"}
VALUES = dict.fromkeys(TEXTS, "CANARY{:08X}") | {"DA": DATE, "DT": DATE + TIME, "TM": TIME, "AS": "043Y"}
USED = {  # by which an image is told from others and read
    "SpecificCharacterSet", "ImageType", "Modality", "PatientSex", "BodyPartExamined", "PatientPosition",
    "AcquisitionTime", "AcquisitionDate", "AcquisitionDateTime", "SeriesTime", "ContentTime",
}  # fmt: skip
GROUPS = {*range(0x0008, 0x0028), 0x0032, 0x0038, 0x0040, 0x0042, 0x0044, 0x0046, 0x0054, 0x0088, 0x0400, 0x2050}
GROUPS |= {0x2200, 0x4000, 0x4008}
FORMATS = "nifti,nrrd,seg.nrrd,mha,dicom-seg,dicom-labelmap,rtstruct,sr,sc"
STUDY = [  # what says whose result it is: no object may leave it out or change it
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime",
    "AccessionNumber", "StudyID", "ReferringPhysicianName",
]  # fmt: skip
MAY_CARRY = {  # of the modules Patient, General Study, Clinical Trial and Frame of Reference, where the source has them
    *STUDY, "IssuerOfPatientID", "TypeOfPatientID", "PatientBirthTime", "PatientAge", "EthnicGroup", "StudyDescription",
    "PatientSize", "PatientWeight", "PatientIdentityRemoved", "DeidentificationMethod", "PositionReferenceIndicator",
    "DeidentificationMethodCodeSequence", "LongitudinalTemporalInformationModified", "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID", "ClinicalTrialProtocolName", "ClinicalTrialSiteID", "ClinicalTrialSiteName",
    "ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID", "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription", "ClinicalTrialCoordinatingCenterName",
}  # fmt: skip

DRIVER = """
import io, json, logging, os, sys, traceback, warnings
from pathlib import Path
jobs, answered = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]).absolute()
opened, watching = [], [False]
def watch(event, args):
    if watching[0] and event == "open" and not isinstance(args[0], int):
        flags = args[2] if isinstance(args[2], int) else 0
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            opened.append(os.fsdecode(args[0]))
    elif watching[0] and event in ("os.mkdir", "os.symlink", "tempfile.mkstemp", "tempfile.mkdtemp", "os.rename"):
        opened.append(" ".join(str(part) for part in args[:2]))
sys.addaudithook(watch)
logs = []
class Keep(logging.Handler):
    def emit(self, record):
        logs.append(f"{self.format(record)} {record.msg!r} {record.args!r}")
logging.basicConfig(level=logging.DEBUG, handlers=[Keep()])
import pydicom.config
from medseg import cli
import medseg.dicom.pixels, medseg.dicom.parts
warnings.simplefilter("always")
own = medseg.dicom.pixels._DECODER, medseg.dicom.parts.Part.open
def broken(part):
    raise PermissionError(13, "Permission denied", str(part.path))
answers = []
for job in jobs:
    pydicom.config.debug(job["debug"], default_handler=False)
    medseg.dicom.pixels._DECODER = job["decoder"] or own[0]
    medseg.dicom.parts.Part.open = broken if job["unreadable"] else own[1]
    logs.clear(), opened.clear()
    sys.argv, sys.stdout, sys.stderr, code = ["medseg", *job["words"]], io.StringIO(), io.StringIO(), 0
    watching[0] = True
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        code = "raised"
        traceback.print_exc()
    watching[0] = False
    answer = {"code": code, "out": sys.stdout.getvalue(), "err": sys.stderr.getvalue()}
    answers.append({**answer, "logs": "\\n".join(logs), "opened": [*opened]})
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
answered.write_text(json.dumps(answers))
"""
CRASH = "import os, sys; sys.stderr.write(repr(sys.stdin.buffer.readline() + sys.stdin.buffer.readline())); os.abort()"


def job(*words, debug=False, decoder="", unreadable=False) -> dict:
    return {"words": [*map(str, words)], "debug": debug, "decoder": str(decoder), "unreadable": unreadable}


def drive(folder: Path, jobs: list[dict]) -> list[dict]:
    """Run commands in one process in `folder`; return what each said, logged and opened for writing."""
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    os.utime(temporary, ns=(1, 1))
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-c", DRIVER, folder / "jobs.json", folder / "answers.json"]
    env = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(Path(__file__).parent.parent)}
    ran = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert (ran.stdout, ran.stderr) == ("", "")  # nothing passes by the streams: no child, no library
    assert temporary.stat().st_mtime_ns == 1, [*temporary.iterdir()]
    return json.loads((folder / "answers.json").read_text())


def singing() -> Dataset:
    """Return every element of text, date and time of the standard's dictionary, with a canary in each."""
    made = Dataset()
    item = Dataset()
    item.PatientName, item.PatientID, item.CodeMeaning = "CANARY^in^item", "CANARYITEM", "CANARYMEANING"
    item.private_block(0x0009, "CANARY MAKER", create=True).add_new(1, "LO", "CANARYPRIVATE")
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        if tag >> 16 in GROUPS and keyword and keyword not in USED:
            if vr in VALUES:
                made.add_new(tag, vr, VALUES[vr].format(tag))
            elif vr == "SQ" and tag >> 16 < 0x0054:
                made.add_new(tag, vr, [item])
    made.SeriesDescription = SHOWN  # what `medseg info` shows, and nothing else
    made.PatientName = "CANARY00100010^Jane^^Dr^=CANARY=CANARY"
    made.ContentTime = made.SeriesTime = made.AcquisitionTime = TIME
    made.DeviceUID = made.StorageMediaFileSetUID = "1.2.826.0.1.3680043.8.498.77777.1"
    made.PatientWeight, made.PatientSize = "77.4242", "1.7742"
    for block, value in ((0x0009, "CANARYPRIVATE"), (0x0029, "CANARYPRIVATE" * 4000)):
        made.private_block(block, "CANARY MAKER", create=True).add_new(1, "UT", value)
    made.private_block(0x0011, "CANARY MAKER", create=True).add_new(1, "SQ", [item])
    return made


SONG = singing()


def study(folder: Path, *, song: bool = True, change=None, **tags) -> Path:
    """Write a CT study whose headers, folders and files name the patient; return the folder that a user types."""
    slices = series(uid="1.2.826.0.1.3680043.8.498.77777.2", **tags)
    for dataset in slices if song else ():
        dataset.update(SONG)
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
    slices = (change(slices) if change else None) or slices
    inner = folder / TYPED / IN_PATHS / "CANARY series"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store(slices, inner)
    for path in inner.iterdir():
        path.rename(inner / f"CANARY {path.name}")
    return folder / TYPED


def files_of(folder: Path) -> list[Path]:
    return sorted((path for path in folder.rglob("*") if path.is_file()), key=str)


def plain(path: Path) -> bytes:
    """Return a file with all that is compressed in it behind it, inflated."""
    raw = path.read_bytes()
    inflated = [gzip.decompress(raw)] if raw[:2] == b"\x1f\x8b" else []
    if path.suffix == ".png":
        chunks = re.findall(rb"(?s)IDAT(.*?).{4}(?=.{4}(?:IDAT|IEND))", raw)
        inflated.append(zlib.decompress(b"".join(chunks)))
        assert not re.search(rb"tEXt|zTXt|iTXt|eXIf", raw)
    for start in (found.start() for found in re.finditer(rb"\x1f\x8b\x08|\x78[\x01\x5e\x9c\xda]", raw)):
        for bits in (47,):
            try:
                inflated.append(zlib.decompressobj(bits).decompress(raw[start:]))
            except zlib.error:
                continue
    return b"\0".join([raw, *inflated])


def check_silent(answer: dict, *, allowed: str = "") -> None:
    """Check that nothing of a command but its files holds a canary, and the typed path is in no log."""
    for stream in ("out", "err", "logs"):
        found = SIGNS.search(answer[stream].replace(allowed, "") if allowed else answer[stream])
        assert not found, f"{stream}: {answer[stream][max(0, found.start() - 300) : found.end() + 60]}"
    assert TYPED not in answer["logs"]
    assert SHOWN not in answer["logs"]
    assert not [path for path in answer["opened"] if SIGNS.search(path)]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The study through the commands that succeed: the answers by name, and the folder with all files."""
    folder = tmp_path_factory.mktemp("run")
    random_bundle().save(folder / MODEL)
    typed, bare = study(folder), study(folder / "bare", song=False)
    with zipfile.ZipFile(folder / f"{TYPED}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = b"CANARY"
        for path in files_of(typed):
            archive.write(path, path.relative_to(typed))
    predict = ("predict", "-m", MODEL, "--device", "cpu")
    jobs = {
        "info": job("info", typed),
        "info zip": job("info", f"{TYPED}.zip"),
        "info series": job("info", typed, "--series", "1"),
        "predict": job(*predict, typed, "--format", FORMATS, "-o", "out", "--probabilities", "--json", "-"),
        "predict bare": job(*predict, bare, "--format", FORMATS, "-o", "out_bare", "--probabilities", "--json", "-"),
        "predict zip": job(*predict, f"{TYPED}.zip", "--format", FORMATS, "-o", "out_zip", "--progress", "json"),
        "convert nii.gz": job("convert", typed, "converted/scan.nii.gz"),
        "convert nrrd": job("convert", typed, "converted/scan.nrrd"),
        "convert mha": job("convert", f"{TYPED}.zip", "converted/scan.mha"),
        "convert seg": job("convert", f"out/{TYPED}_seg.dcm", "converted/a.nii.gz", "--scan", typed),
        "convert seg.nrrd": job("convert", f"out/{TYPED}_seg.dcm", "converted/a.seg.nrrd", "--scan", typed),
        "convert rtstruct": job("convert", f"out/{TYPED}_seg_rtstruct.dcm", "converted/b.nii.gz", "--scan", typed),
        "convert to rtstruct": job(
            "convert", f"out/{TYPED}_seg.nii.gz", "converted/c.dcm", "--scan", typed, "--format", "rtstruct"
        ),
        "convert to seg": job("convert", f"out/{TYPED}_seg.nii.gz", "converted/d.dcm", "--scan", f"{TYPED}.zip"),
        "evaluate": job("evaluate", f"out/{TYPED}_seg.dcm", f"out/{TYPED}_seg.nii.gz", "-o", "scored"),
        "evaluate rtstruct": job("evaluate", f"out/{TYPED}_seg_rtstruct.dcm", f"out/{TYPED}_seg.dcm", "-o", "again"),
    }
    (folder / "converted").mkdir()
    return dict(zip(jobs, drive(folder, [*jobs.values()]), strict=True)), folder


def results(folder: Path) -> list[Path]:
    return [path for name in ("out", "out_zip", "converted", "scored", "again") for path in files_of(folder / name)]


def test_every_command_did_its_work(ran):
    answers, folder = ran
    for name, answer in answers.items():
        if name != "evaluate rtstruct":  # nothing says on which grid two objects far from their scan lie
            assert answer["code"] == 0, f"{name}: {answer['err'][-2000:]}"
    assert len(files_of(folder / "out")) == len(files_of(folder / "out_zip")) + 1 == 12
    assert any(b"CANARYPRIVATE" in path.read_bytes() for path in files_of(folder / TYPED))


def test_terminal_and_logs_hold_no_canary(ran):
    for answer in ran[0].values():
        check_silent(answer)


def test_the_description_of_a_series_is_shown_in_the_table_alone(ran):
    answers, folder = ran
    for name, answer in answers.items():
        assert (SHOWN in answer["out"] + answer["err"]) == (name in {"info", "info zip"}), name
    assert not [path for path in results(folder) if SHOWN.encode() in plain(path)]


def test_files_other_than_dicom_hold_no_canary(ran):
    found = [path for path in results(ran[1]) if path.suffix != ".dcm"]
    assert {path.suffix for path in found} >= {".gz", ".nrrd", ".mha", ".png", ".json", ".csv", ".html"}
    for path in found:
        sign = SIGNS.search(plain(path).decode("latin-1"))
        assert not sign, f"{path.name}: {sign}"


def test_the_typed_path_stands_in_the_report_alone(ran):
    reports = {".json", ".csv", ".html"}  # beside the result, for whoever typed it
    for path in results(ran[1]):
        if path.suffix not in reports:
            assert TYPED.encode() not in plain(path), path.name
            assert os.fsencode(ran[1]) not in plain(path), path.name


def test_pictures_and_voxels_are_the_same_without_a_name_in_the_header(ran):
    folder, seen = ran[1], set()
    for path in files_of(folder / "out"):
        twin = folder / "out_bare" / path.name
        if path.suffix == ".dcm":
            ours, theirs = dcmread(path), dcmread(twin)
            assert ours.get("PixelData") == theirs.get("PixelData"), path.name
        elif path.suffix != ".json":
            assert path.read_bytes() == twin.read_bytes(), path.name
        seen.add(path.suffix)
    assert seen == {".gz", ".nrrd", ".mha", ".png", ".json", ".dcm"}


def dicom_results(folder: Path) -> dict[str, Dataset]:
    return {path.name: dcmread(path) for path in results(folder) if path.suffix == ".dcm"}


def test_dicom_objects_belong_to_the_patient_and_study_of_the_scan(ran):
    source = dcmread(files_of(ran[1] / TYPED)[0])
    found = dicom_results(ran[1])
    assert len(found) == 7
    for name, dataset in found.items():
        for keyword in STUDY:
            assert keyword in dataset, f"{name}: {keyword}"
            assert dataset[keyword].value == source[keyword].value, f"{name}: {keyword}"


def test_dicom_objects_carry_nothing_else_of_the_header(ran):
    for name, dataset in dicom_results(ran[1]).items():
        carried = {e.keyword for e in dataset if SIGNS.search(str(e.value).replace("2.25.", ""))}
        assert carried <= MAY_CARRY, f"{name}: {sorted(carried - MAY_CARRY)}"
        nested = {int(tag, 16) for tag in re.findall(r"CANARY([0-9A-F]{8})", str(dataset))}
        assert nested <= {tag_for_keyword(keyword) for keyword in MAY_CARRY}, f"{name}: {nested}"
        dates = {e.keyword for e in dataset.iterall() if DATE in str(e.value) and e.VR != "SQ"}
        assert dates <= MAY_CARRY, f"{name}: {dates - MAY_CARRY}"


def test_dicom_objects_hold_no_private_elements_and_no_path(ran):
    for path in (path for path in results(ran[1]) if path.suffix == ".dcm"):
        raw = path.read_bytes()
        for word in (b"CANARYPRIVATE", b"CANARY MAKER", b"CANARY series", IN_PATHS.encode(), b".dcm", b"77777.1"):
            assert word not in raw, f"{path.name}: {word}"
        assert not [e for e in dcmread(path).iterall() if e.tag.is_private], path.name


def test_only_results_are_written(ran):
    for answer in ran[0].values():
        for path in answer["opened"]:
            assert re.match(r"(?:\S*/)?(?:out|out_bare|out_zip|converted|scored|again)\b", path) or path == "/dev/null", path

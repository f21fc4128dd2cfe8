"""Patient data stays where it is: a study full of canaries goes through every command, and all that comes out is read.

The commands run in one process of their own, as a user's would: warnings are shown, the root logger is at DEBUG, every
file that is opened for writing is noted, and the folder for temporary files tells by its time whether one was made.
"""

import contextlib
import gzip
import io
import json
import os
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
from phantoms import body, series, store
from pydicom import Dataset, dcmread
from pydicom.datadict import DicomDictionary, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from medseg.dicom.privacy import quiet

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


def study(folder: Path, *, song: bool = True, change=None, array=None) -> Path:
    """Write a CT study whose headers, folders and files name the patient; return the folder that a user types."""
    slices = series(array, uid="1.2.826.0.1.3680043.8.498.77777.2")
    for dataset in slices if song else ():
        dataset.update(SONG)
    inner = folder / TYPED / IN_PATHS / "CANARY series"
    with quiet():
        slices = (change(slices) if change else None) or slices
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
        with contextlib.suppress(zlib.error):
            inflated.append(zlib.decompressobj(47).decompress(raw[start:]))
    return b"\0".join([raw, *inflated])


def check_silent(answer: dict) -> None:
    """Check that nothing of a command but its files holds a canary, and the typed path is in no log."""
    for stream in ("out", "err", "logs"):
        found = SIGNS.search(answer[stream])
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
            assert (
                re.match(r"(?:\S*/)?(?:out|out_bare|out_zip|converted|scored|again)\b", path) or path == "/dev/null"
            ), path


def put(keyword: str, value: bytes, *, vr: str | None = None, at: int = 4):
    """Return a change that gives one slice an element with any bytes."""
    tag = tag_for_keyword(keyword)

    def change(slices):
        kind = vr or DicomDictionary[tag][0]
        slices[at][tag] = RawDataElement(
            Tag(tag), kind, len(value), value, 0, is_implicit_VR=False, is_little_endian=True
        )

    return change


def packed(syntax: str, frame: bytes):
    def change(slices):
        from pydicom.encaps import encapsulate

        for dataset in slices:
            dataset.PixelData = encapsulate([frame])
            dataset["PixelData"].is_undefined_length = True
            dataset.file_meta.TransferSyntaxUID = syntax

    return change


def rewrite(folder: Path, old: bytes, new: bytes) -> None:
    for path in files_of(folder):
        path.write_bytes(path.read_bytes().replace(old, new))


def two_series(slices):
    again = series(FEW, uid="1.2.826.0.1.3680043.8.498.77777.3")
    for dataset in again:
        dataset.update(SONG)
    return slices + again


def damaged_sequence(slices):
    broken = b"\xfe\xff\x00\xe0\xff\x00\x00\x00CANARY" + b"\x10\x00\x10\x00PN\xf0\x00CANARY"
    put("RequestAttributesSequence", broken, vr="OB")(slices)


def enhanced(slices):
    """Return one multi-frame object whose functional groups hold a number that is none."""
    made = slices[0]
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    made.NumberOfFrames = len(slices)
    made.PixelData = b"".join(dataset.PixelData for dataset in slices)
    groups = []
    for _ in slices:
        place, group = Dataset(), Dataset()
        value = b"CANARY\\1\\2"
        place[0x00200032] = RawDataElement(Tag(0x00200032), "DS", len(value), value, 0, False, True)
        group.PlanePositionSequence = [place]
        groups.append(group)
    made.PerFrameFunctionalGroupsSequence = groups
    return [made]


def pet(slices):
    for dataset in slices:
        dataset.Modality, dataset.Units, dataset.CorrectedImage = "PT", "BQML", ["ATTN", "DECY"]
        dataset.DecayCorrection = "ADMIN"
    put("PatientWeight", b"CANARY", at=0)(slices)


FEW = body((40, 32, 6))
MPEG2 = b"1.2.840.10008.1.2.4.100"
JPEG, J2K = "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90"
BAD = {
    "a slice is missing": lambda s: s[:2] + s[3:],
    "pixels are cut off": lambda s: setattr(s[4], "PixelData", b"CANARY" * 20),
    "position": put("ImagePositionPatient", b"CANARY\\1\\2"),
    "orientation": put("ImageOrientationPatient", b"CANARY\\0\\0\\0\\1\\0"),
    "spacing": put("PixelSpacing", b"CANARY\\1"),
    "slope": put("RescaleSlope", b"CANARY"),
    "thickness": put("SliceThickness", b"CANARY", at=0),
    "instance number": put("InstanceNumber", b"CANARY"),
    "study date": put("StudyDate", b"CANARY", at=0),
    "birth date": put("PatientBirthDate", b"CANARYBI", at=0),
    "birth time": put("PatientBirthTime", b"CANARY", at=0),
    "weight": put("PatientWeight", b"CANARY", at=0),
    "name": put("PatientName", b"CANARY=\x1b$B\xff=\xff=a=b=c", at=0),
    "character set": put("SpecificCharacterSet", b"CANARY", at=0),
    "study uid": put("StudyInstanceUID", b"CANARY.1", at=0),
    "no frame of reference": lambda s: [d.pop("FrameOfReferenceUID") for d in s] and None,
    "no instance": lambda s: s[0].pop("SOPInstanceUID") and None,  # but in the file meta information
    "a damaged sequence": damaged_sequence,
    "an item that is none": put("RequestAttributesSequence", b"CANARY" * 9, vr="SQ"),
    "photometric": put("PhotometricInterpretation", b"CANARY"),
    "lossy": put("LossyImageCompressionRatio", b"CANARY", at=0),
    "frames": put("NumberOfFrames", b"CANARY"),
    "jpeg": packed(JPEG, b"\xff\xd8CANARY" * 9),
    "j2k": packed(J2K, b"\xff\x4fCANARY" * 9),
    "unknown syntax": packed(MPEG2.decode(), b"CANARY" * 9),
    "two series": two_series,
    "enhanced": enhanced,
    "pet": pet,
}


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """Bad studies through info, predict and convert, with and without --debug: all answers, and the folder."""
    folder = tmp_path_factory.mktemp("bad")
    random_bundle().save(folder / MODEL)
    (folder / "crash.py").write_text(CRASH)
    jobs = {}
    for number, (name, change) in enumerate(BAD.items()):
        typed = study(folder / str(number), change=change, array=FEW)
        rewrite(typed, MPEG2, b"1.2.CANARY0008.1.2.4.100"[: len(MPEG2)])
        suv = ("--suv",) if name == "pet" else ()
        predict = ("predict", typed, *suv, "-m", MODEL, "--device", "cpu", "--format", FORMATS, "--json", "-")
        jobs[name, "info"] = job("info", typed, "--debug")
        jobs[name, "series"] = job("info", typed, "--series", "1", *suv)
        jobs[name, "predict"] = job(*predict, "-o", f"out{number}")
        jobs[name, "predict --debug"] = job(*predict, "-o", f"out{number}", "--debug")
        jobs[name, "repair"] = job("convert", typed, "out.nii.gz", "--repair", "--debug")
    compressed = study(folder / "crash", change=packed(JPEG, b"\xff\xd8CANARY" * 9))
    jobs["crash", "convert"] = job("convert", compressed, "out.nii.gz", "--debug", decoder=folder / "crash.py")
    with_song = study(folder / "unreadable")
    for words in (("info",), ("predict", "-m", MODEL, "--device", "cpu"), ("info", "--debug", "--series", "1")):
        jobs["unreadable", words] = job(*words, with_song, unreadable=True)
    return dict(zip(jobs, drive(folder, [*jobs.values()]), strict=True)), folder


@pytest.mark.slow
def test_bad_studies_fail_in_all_the_ways_that_are_meant(failed):
    codes = {name: answer["code"] for name, answer in failed[0].items()}
    assert codes["pixels are cut off", "predict"] == codes["jpeg", "predict"] == codes["two series", "predict"] == 2
    assert codes["pixels are cut off", "predict --debug"] == codes["crash", "convert"] == "raised"
    assert codes["study date", "predict"] == codes["weight", "predict"] == 0
    assert "decoder fail" in failed[0]["crash", "convert"]["err"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*BAD, "crash", "unreadable"])
def test_errors_and_tracebacks_of_a_bad_study_hold_no_canary(failed, name):
    for (case, _), answer in failed[0].items():
        if case == name:
            check_silent(answer)


@pytest.mark.slow
def test_results_of_bad_studies_hold_no_canary(failed):
    found = [path for path in files_of(failed[1]) if path.relative_to(failed[1]).parts[0].startswith("out")]
    assert len(found) > 100
    for path in found:
        text = plain(path).decode("latin-1")
        if path.suffix == ".dcm":
            sign = re.search(r"CANARYPRIVATE|CANARY MAKER|CANARY series|\.dcm|TYPEDPATH", text)
        else:
            sign = SIGNS.search(text)
        assert not sign, f"{path.name}: {sign}"


@pytest.mark.slow
def test_with_pydicom_at_debug_the_logs_hold_no_canary(ran, tmp_path):
    """The commands put the guard of `medseg.dicom.privacy` in place, not only the readers around what they read."""
    folder = ran[1]
    (tmp_path / MODEL).write_bytes((folder / MODEL).read_bytes())
    typed, seg = folder / TYPED, folder / "out" / f"{TYPED}_seg.dcm"
    predict = ("predict", typed, "-m", MODEL, "--device", "cpu", "--format", FORMATS, "-o", "out")
    rtstruct, mask = folder / "out" / f"{TYPED}_seg_rtstruct.dcm", folder / "out" / f"{TYPED}_seg.nii.gz"
    words = [
        ("info", typed), ("info", typed, "--series", "1"), predict, ("convert", seg, "a.nii.gz", "--scan", typed),
        ("convert", mask, "b.dcm", "--scan", typed, "--format", "rtstruct"), ("evaluate", seg, mask),
        ("evaluate", rtstruct, mask),
    ]  # fmt: skip
    for answer in drive(tmp_path, [job(*some, debug=True) for some in words]):
        assert answer["code"] == 0
        check_silent(answer)


@pytest.mark.parametrize(
    "words", [("info", "SCAN"), ("predict", "SCAN", "-o", "OUT"), ("convert", "SCAN", "OUT/a.mha"), ("--version",)]
)
def test_commands_without_dicom_load_no_pydicom(words, tmp_path):
    (tmp_path / "out").mkdir()
    places = {"SCAN": str(SAMPLES / "t1_hippocampus.nii.gz"), "OUT": str(tmp_path / "out"), "OUT/a.mha": "out/a.mha"}
    program = """
import sys
from medseg import cli
try: cli.main()
except SystemExit: pass
print("LOADED", *sorted({"pydicom", "highdicom", "pynetdicom"} & set(sys.modules)))
"""
    command = [sys.executable, "-c", program, *(places.get(word, word) for word in words)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "LOADED"


def zipped(typed: Path, target: Path, spoil=None) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in files_of(typed):
            archive.write(path, path.relative_to(typed))
    if spoil:
        raw = bytearray(target.read_bytes())
        spoil(raw)
        target.write_bytes(raw)
    return target


def flip_pixels(raw: bytearray) -> None:
    """Change a pixel of every member, so that none has its checksum."""
    for found in re.finditer(rb"\xe0\x7f\x10\x00OW", bytes(raw)):
        raw[found.end() + 600] ^= 1


def flip_headers(raw: bytearray) -> None:
    for found in re.finditer(rb"CANARYPRIVATE" * 3, bytes(raw)):
        raw[found.start() + 3] ^= 1


def cut(raw: bytearray) -> None:
    del raw[len(raw) // 2 : len(raw) // 2 + 5000]


def test_damaged_archives_name_no_member(tmp_path):
    random_bundle().save(tmp_path / MODEL)
    typed, jobs = study(tmp_path), []
    for number, spoil in enumerate((flip_pixels, flip_headers, cut)):
        archive = zipped(typed, tmp_path / f"{TYPED}{number}.zip", spoil)
        predict = ("predict", archive, "-m", MODEL, "--device", "cpu", "-o", f"out{number}", "--format", FORMATS)
        jobs += [job("info", archive), job("info", archive, "--series", "1", "--debug"), job(*predict)]
    answers = drive(tmp_path, jobs)
    assert answers[1]["code"] == "raised"
    for answer in answers:
        check_silent(answer)


def test_other_files_below_a_typed_folder_are_not_named(tmp_path):
    random_bundle().save(tmp_path / MODEL)
    typed = study(tmp_path)
    shutil.copy(SAMPLES / "t1_hippocampus.nii.gz", typed / "CANARY.nii.gz")
    shutil.copy(files_of(typed / IN_PATHS)[0], typed / "CANARY.dcm")
    [answer] = drive(tmp_path, [job("predict", typed, "-m", MODEL, "--device", "cpu", "-o", "out")])
    assert answer["code"] == 2
    check_silent(answer)


@pytest.fixture
def labelled(tmp_path):
    from medseg.io import read
    from medseg.plan import Label
    from medseg.volume import LabelMap

    typed = study(tmp_path)
    scan = read(typed)
    array = (scan.array[0] > 60).astype(np.uint8)
    return LabelMap(array, scan.geometry, (Label(value=1, name="organ"),), scan.source), typed


@pytest.mark.parametrize("kind", ["dicom-seg", "dicom-labelmap", "rtstruct", "sr", "sc"])
def test_a_scan_that_is_gone_is_not_named(labelled, kind):
    from PIL import Image

    from medseg.dicom.frames import Producer
    from medseg.dicom.results import encode
    from medseg.errors import UsageError

    labels, typed = labelled
    shutil.rmtree(typed)
    picture = io.BytesIO()
    Image.new("RGB", (40, 40)).save(picture, "PNG")
    with pytest.raises(UsageError) as caught:
        encode([kind], labels, Producer("m", "1", "0" * 64), picture=picture.getvalue())
    assert not SIGNS.search(str(caught.value))


@pytest.mark.parametrize("kind", ["dicom-seg", "rtstruct"])
def test_a_result_that_cannot_be_read_back_names_no_file(labelled, kind, monkeypatch):
    from medseg.dicom import results
    from medseg.dicom.frames import Producer
    from medseg.errors import OutputError

    def spoil(dataset, **_):
        buffer = io.BytesIO()
        dataset = dcmread(io.BytesIO(dataset))
        for keyword in ("SegmentSequence", "StructureSetROISequence"):
            if keyword in dataset:
                del dataset[keyword]
        dataset.save_as(buffer)
        return buffer.getvalue()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        good = results.encode([kind], labelled[0], Producer("m", "1", "0" * 64))[kind]
        with pytest.raises(OutputError) as caught:
            results.check(spoil(good), labelled[0], kind)
    assert not SIGNS.search(str(caught.value))


@pytest.mark.parametrize(
    "error",
    [ValueError("CANARY^Jane in (0010,0010)"), UserWarning("CANARY"), FileNotFoundError(2, "gone", "/x/CANARY.dcm")],
)
def test_an_error_that_nobody_foresaw_is_told_without_its_text(error):
    from medseg.errors import explain

    code, problem, hint = explain(error)
    assert not SIGNS.search(f"{code} {problem} {hint}")
    assert type(error).__name__ in code + problem

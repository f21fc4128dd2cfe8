"""From scan to label map: medseg with each backend, MONAI and nnU-Net v2, with equal network, weights and windows.

    python benchmarks/inference.py --case a b c d --data HIPPOCAMPUS --nnunet VENV --output FOLDER [--threads 2]

a: the shipped hippocampus model over 20 scans of the Medical Segmentation Decathlon (--data, its hippocampus folder).
b: a network for 14 labels, CT of 192 x 192 x 160, windows of 96^3.
c: 105 labels on 273 x 273 x 333 voxels of 1.5 mm, resampled to a scan of 512 x 512 x 300. A stub stands for the network
   (`inference/network.py`); its own time is measured in every method, and the rest is what counts.
d: a scan of 1024^3 int16 and 3 labels, `medseg predict` alone, under 6 GB of address space.

Windows overlap by half and are blended by Gaussian weights, none is mirrored. Each method runs in a process of its own.
"From memory" begins with the scan as the tool's reader gives it and ends with the label map on the scan's grid; "file
to file" adds reading and writing. Imports and loading of weights ("ready") count for none. Nothing is warmed up, but
`medseg models optimize` runs before. How a peer does it stands at the head of `inference/by_monai.py` and
`inference/by_nnunet.py`. Label maps are compared with those of MONAI; where they differ, the margin is by how much
MONAI's best logit exceeds its second. --scale makes sizes and windows smaller (a: fewer scans).

VENV is an environment made by `python3 -m venv VENV && VENV/bin/pip install -c constraints.txt torch nnunetv2==2.8.1`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent / "inference"))
import work

import medseg

HERE = Path(work.__file__).parent
PEERS = ("monai", "monai/buffered", "nnunet")
METHODS = {"cpu": ("medseg/openvino", "medseg/torch", *PEERS), "cuda": ("medseg/torch", "medseg/compiled", *PEERS)}
NUMBERS = {
    "peak MB": ("peak", "{:.0f}"),
    "growth MB": ("growth", "{:.0f}"),
    "card busy": ("busy", "{:.0%}"),
    "card peak MB": ("card_peak", "{:.0f}"),
    "ready s": ("ready", "{:.1f}"),
    "windows": ("windows", "{:.0f}"),
    "threads": ("threads", "{:.0f}"),
    "load": ("load", "{:.1f}"),
    "labels as MONAI's": ("equal", "{:.4%}"),
}
GIGABYTE = 10**9
Record = dict[str, Any]
Words = argparse.Namespace


def main(argv: Sequence[str] | None = None, *, device: str = "cpu") -> None:
    """Run all methods on all cases, and write the tables after each case."""
    words = parsed(argv, device)
    about = machine(words.device)
    with tempfile.TemporaryDirectory() as temporary:
        words.output = (words.output or Path(temporary)).resolve()
        methods = [method for method in words.methods if words.case != ["d"] and is_there(method, words)]
        results = []
        for case in words.case:
            folder = words.output / case
            folder.mkdir(parents=True, exist_ok=True)
            job = work.CASES[case](work.Asked(folder, words.scale, words.data))
            rows = [run_huge(job, folder, words)] if case == "d" else compare(job, methods, folder, words)
            results.append({"case": case, "title": job.title, "stub": job.stub, "rows": rows})
            (words.output / "results.json").write_text(json.dumps({"machine": about, "cases": results}, indent=1))
            lines = [line for result in results for line in table(result)]
            (words.output / "results.md").write_text("\n".join([*lines, about, ""]))
            print("\n".join(table(results[-1])), flush=True)
        print(about)


def parsed(argv: Sequence[str] | None, device: str) -> Words:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=work.CASES, default=["a", "b", "c"])
    parser.add_argument(
        "--methods",
        nargs="+",
        help=f"default: {' '.join(METHODS['cpu'])}; also medseg/compiled, monai/whole, or medseg/openvino:int8",
    )
    parser.add_argument("--data", type=Path, help="hippocampus folder, for case a")
    parser.add_argument("--nnunet", type=Path, metavar="VENV", help="environment that holds nnunetv2")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--repeat", type=int, default=1, help="medians of so many processes")
    parser.add_argument("--limit-memory", type=float, metavar="GB", help="address space of each process; not on CUDA")
    parser.add_argument(
        "--touch",
        type=float,
        default=0.0,
        metavar="GB",
        help="use so much memory before each process: virtual machines are slow to hand it out for the first time",
    )
    parser.add_argument("--device", default=device)
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="for scans, label maps and results")
    words = parser.parse_args(argv)
    words.methods = words.methods or METHODS["cuda" if words.device.startswith("cuda") else "cpu"]
    return words


def is_there(method: str, words: Words) -> bool:
    """Return whether a method can run here; say so where it cannot."""
    tool, _, variant = method.partition("/")
    needed = {"monai": "monai", "nnunet": "nnunetv2"}.get(tool, "openvino" if "openvino" in variant else "torch")
    if "openvino" in variant and words.device != "cpu":
        print(f"{method}: skipped, as OpenVINO runs on the CPU", flush=True)
    elif find_spec(needed) is None and not (tool == "nnunet" and words.nnunet):
        print(f"{method}: skipped, as {needed} is not installed", flush=True)
    else:
        return True
    return False


def compare(job: work.Work, methods: Sequence[str], folder: Path, words: Words) -> list[Record]:
    """Return a row for each method: the medians of its runs, and how far its labels equal those of MONAI."""
    if job.stub:
        methods = [method for method in methods if "openvino" not in method]
    runs: dict[str, list[Record]] = {method: [] for method in methods}
    forms: list[str] = []
    for number in range(words.repeat):
        for method, found in runs.items():
            form = "int8" if method.endswith("int8") else "float32"
            if "openvino" in method and form not in forms[-1:]:
                optimise(job, form)
                forms.append(form)
            found.append(run(method, job, folder, words, margins=method == "monai" and number == words.repeat - 1))
            say(method, found[-1])
    return [
        {"method": method, **medians(found), **agreement(method, job, folder, methods)}
        for method, found in runs.items()
    ]


def optimise(job: work.Work, precision: str) -> None:
    """Let medseg make the form of the model that it will find by itself; it keeps one at a time."""
    command = [sys.executable, "-m", "medseg", "models", "optimize", str(job.bundle), "--precision", precision]
    subprocess.run([*command, *(["--calibrate", str(job.scans[0])] if precision == "int8" else [])], check=True)


def run(method: str, job: work.Work, folder: Path, words: Words, *, margins: bool) -> Record:
    """Return what a process of its own measured, or why it failed."""
    tool, _, variant = method.partition("/")
    own = folder / method.replace("/", "-").replace(":", "-")
    (own / "labels").mkdir(parents=True, exist_ok=True)
    for older in (own / "labels").iterdir():
        older.unlink()
    limit = 0 if words.device != "cpu" or not words.limit_memory else int(words.limit_memory * GIGABYTE)
    asked = {
        "tool": tool, "variant": variant, "bundle": str(job.bundle), "scans": [str(path) for path in job.scans],
        "labels": str(own / "labels"), "threads": words.threads, "device": words.device, "overlap": 0.5,
        "stub": job.stub, "margins": margins, "limit": limit,
    }  # fmt: skip
    (own / "job.json").write_text(json.dumps(asked))
    python = words.nnunet.absolute() / "bin" / "python" if tool == "nnunet" and words.nnunet else sys.executable
    subprocess.run([sys.executable, "-c", f"b'x' * {int(words.touch * GIGABYTE)}"], check=True)
    load = os.getloadavg()[0]
    with (own / "log.txt").open("w") as log:
        command = [str(python), str(HERE / "one.py"), str(own / "job.json")]
        done = subprocess.run(
            command, env=surroundings(words.threads), stdout=subprocess.PIPE, stderr=log, text=True, check=False
        )
    if done.returncode:
        lines = (own / "log.txt").read_text().strip().splitlines()
        return {"failed": lines[-1] if lines else f"exit code {done.returncode}", "load": load}
    found = json.loads(done.stdout.splitlines()[-1])
    whole = found["predict"]
    times = {"from_memory": whole, "file_to_file": whole + found["read"] + found["write"]}
    times["outside"] = times["file_to_file" if job.stub else "from_memory"] - found["network"]
    return {**found, **times, "threads": words.threads, "load": load, "finished": time.strftime("%Y-%m-%d %H:%M")}


def surroundings(threads: int) -> dict[str, str]:
    """Return the environment of a process with so many threads; nnU-Net wants folders, and uses none here."""
    numbers = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "nnUNet_def_n_proc")
    folders = dict.fromkeys(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), tempfile.gettempdir())
    return {**os.environ, **folders, **dict.fromkeys(numbers, str(threads))}


def say(method: str, found: Record) -> None:
    """Print what came of one run."""
    what = found.get("failed") or f"{found['from_memory']:.1f} s, {found['peak']:.0f} MB"
    print(f"  {method}: {what} (load {found['load']:.1f})", flush=True)


def medians(runs: list[Record]) -> Record:
    """Return the last run, with medians for numbers."""
    worked = [found for found in runs if "failed" not in found]
    if not worked:
        return runs[-1]
    numbers = [name for name, value in worked[-1].items() if isinstance(value, (int, float))]
    return {**worked[-1], **{name: median(found[name] for found in worked) for name in numbers}, "runs": len(worked)}


def agreement(method: str, job: work.Work, folder: Path, methods: Sequence[str]) -> Record:
    """Return the share of voxels with MONAI's label, and MONAI's margins where the labels differ."""
    theirs, own = folder / "monai" / "labels", folder / method.replace("/", "-").replace(":", "-") / "labels"
    voxels = different = 0
    margins = []
    for scan in job.scans:
        if "monai" not in methods or not all((part / scan.name).is_file() for part in (theirs, own)):
            return {"equal": None, "margins": None}
        a, b = (medseg.read_labels(part / scan.name).array for part in (theirs, own))
        differ = a != b
        voxels, different = voxels + a.size, different + int(differ.sum())
        where = theirs / f"{scan.name}.margin.npy"
        if where.is_file():
            margins.append(np.load(where, mmap_mode="r")[differ])
    found = np.concatenate(margins) if margins else np.zeros(0)
    return {
        "equal": 1 - different / voxels,
        "different": different,
        "margins": [float(np.median(found)), float(found.max())] if found.size else None,
    }


def run_huge(job: work.Work, folder: Path, words: Words) -> Record:
    """Return time and peak of `medseg predict` under a limit of memory."""
    import resource

    limit = int((words.limit_memory or 6) * GIGABYTE)
    limits = (limit, limit) if words.device == "cpu" else resource.getrlimit(resource.RLIMIT_AS)
    command = [sys.executable, "-m", "medseg", "predict", str(job.scans[0]), "-m", str(job.bundle)]
    command += ["-o", str(folder / "labels"), "--device", words.device, "--threads", str(words.threads)]
    load, start = os.getloadavg()[0], time.perf_counter()
    with (folder / "log.txt").open("w") as log:
        child = subprocess.Popen(
            command,
            env=surroundings(words.threads),
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limits),  # noqa: PLW1509 - no threads run
        )
        _, status, used = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    record = {
        "method": "medseg predict",
        "backend": f"{words.device}, under {limit / GIGABYTE:g} GB",
        "limit_gb": limit / GIGABYTE,
        "load": load,
    }
    if status:
        return {**record, "failed": (folder / "log.txt").read_text().strip().splitlines()[-1]}
    return {**record, "file_to_file": seconds, "peak": used.ru_maxrss / 1024, "threads": words.threads}


def table(result: Record) -> list[str]:
    """Return a case as lines of Markdown, without columns in which nothing stands."""
    rows = result["rows"]
    base = next((row for row in rows if "failed" not in row), {})
    columns = [["method", *(name_cell(row) for row in rows)]]
    outside = "outside the network, file to file, s" if result["stub"] else "outside the network s"
    for head, key in {"from memory s": "from_memory", outside: "outside", "file to file s": "file_to_file"}.items():
        columns.append([head, *(time_cell(row, base, key) for row in rows)])
    columns += [[head, *(number(row, key, form) for row in rows)] for head, (key, form) in NUMBERS.items()]
    columns.append(["margin where not: median, largest", *(margin_cell(row) for row in rows)])
    head, *lines = zip(*(column for column in columns if any(column[1:])), strict=True)
    title = f"{result['title']}; in brackets: how many times as long as {base.get('method', '')}"
    versions = sorted({f"{name} {which}" for row in rows for name, which in row.get("versions", {}).items()})
    return [
        *("", title, ""),
        *(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)),
        *("", ", ".join(versions), ""),
    ]


def name_cell(row: Record) -> str:
    """Return what ran, or why it did not."""
    said = f"failed: {row['failed']}" if "failed" in row else row["backend"]
    return f"{row['method']} ({said})"


def number(row: Record, key: str, form: str) -> str:
    """Return a number of a row, empty where there is none."""
    return "" if row.get(key) is None else form.format(row[key])


def time_cell(row: Record, base: Record, key: str) -> str:
    """Return seconds, and how many times those of the first method they are."""
    return f"{row[key]:.2f} ({row[key] / base[key]:.2f})" if key in row and key in base else ""


def margin_cell(row: Record) -> str:
    """Return MONAI's margins where labels differ."""
    margins = row.get("margins")
    return f"{margins[0]:.2g}, {margins[1]:.2g}" if margins else ""


def machine(device: str) -> str:
    """Return processor and card; leave with one line where the card is not there."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    parts = [name, f"{os.cpu_count()} cores", f"Python {platform.python_version()}"]
    if device.startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            sys.exit(f"error: no CUDA device: torch {torch.__version__} sees none; give --device cpu to try this out")
        memory = torch.cuda.get_device_properties(device).total_memory / GIGABYTE
        parts = [torch.cuda.get_device_name(device), f"{memory:.0f} GB", *parts]
    return ", ".join(parts)


if __name__ == "__main__":
    main()

"""Dice after so many minutes of training: medseg, nnU-Net v2 and a plain MONAI script, same data, cores and minutes.

    python benchmarks/training/run.py DATA --minutes 5 15 45 --nnunet VENV --output FOLDER [--threads 2]

DATA is the hippocampus folder of the Medical Segmentation Decathlon with `splits.json`: every method trains on `train`
of its fold 0 and writes label maps of `val`, which are scored here by one code for all. VENV is an environment made by
`python3 -m venv VENV && VENV/bin/pip install -c constraints.txt torch nnunetv2==2.8.1`.

The minutes of medseg are the wall time of the whole command. Those of the others are training steps alone: planning,
preprocessing, caching and imports come before, and are listed. Installing and predicting count for none. A method that
has a result in --output is not run again. The machine should have nothing else to do: the load is listed, too.

Methods: `medseg`, `nnunet`, `monai`, and on demand `nnunet-batch2` (nnU-Net with two patches in an update instead of
those of its plan, for more updates).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medseg.evaluation import Settings, Wanted, choose_metrics, evaluate, summarise
from medseg.io import read_labels

HERE = Path(__file__).parent
LABELS = {"anterior": 1, "posterior": 2}
ENDING = ".nii.gz"
Words = argparse.Namespace
Record = dict[str, Any]


def main() -> None:
    """Run what has no result yet, and write the tables after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, nargs="+", default=[5, 15, 45])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["medseg", "nnunet", "monai"])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each method; all cores when left out")
    parser.add_argument("--nnunet", type=Path, metavar="VENV", help="environment that holds nnunetv2")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    words = parser.parse_args()
    if not words.nnunet and any(method.startswith("nnunet") for method in words.methods):
        parser.error("nnunet needs --nnunet VENV")
    words.output = words.output.resolve()
    words.output.mkdir(parents=True, exist_ok=True)
    write_fold(words.data.resolve(), words.output)
    for minutes in words.minutes:
        for method in words.methods:
            done = words.output / f"{method}-{minutes:g}" / "result.json"
            if done.is_file():
                print(f"{method}, {minutes:g} min: there already", flush=True)
                continue
            done.parent.mkdir(exist_ok=True)
            try:
                result = measure(method, minutes, done.parent, words)
            except subprocess.CalledProcessError as error:
                print(f"{method}, {minutes:g} min: failed, see {done.parent / 'log.txt'}: {error}", flush=True)
                continue
            done.write_text(json.dumps(result, indent=1) + "\n")
            print(f"{method}, {minutes:g} min: {result['dice']}", flush=True)
            write_tables(words.output)
    write_tables(words.output)


def write_fold(data: Path, output: Path) -> None:
    """Write the cases of the fold for the other scripts (fold.json) and for medseg (training.json)."""
    split = json.loads((data / "splits.json").read_text())[0]
    cases = {
        part: [
            {
                "case": name,
                "image": str(data / "imagesTr" / f"{name}{ENDING}"),
                "label": str(data / "labelsTr" / f"{name}{ENDING}"),
            }
            for name in split[part]
        ]
        for part in ("train", "val")
    }
    about = {"channels": ["MRI"], "labels": LABELS}
    (output / "fold.json").write_text(json.dumps({**about, **cases}, indent=1))
    (output / "training.json").write_text(json.dumps({**about, "training": cases["train"]}, indent=1))


def measure(method: str, minutes: float, folder: Path, words: Words) -> Record:
    """Run a method, and return what it did and its scores."""
    load = os.getloadavg()[0]
    record = METHODS[method](minutes, folder, words)
    cases = json.loads((words.output / "fold.json").read_text())["val"]
    dice, hd95 = scores(folder / "labels", cases)
    return {
        "method": method,
        "minutes": minutes,
        "dice": dice,
        "hd95_mm": hd95,
        "cases": len(cases),
        "threads": words.threads,
        "machine": machine(),
        "load_before": round(load, 2),
        "finished": time.strftime("%Y-%m-%d %H:%M"),
        **record,
    }


def medseg(minutes: float, folder: Path, words: Words) -> Record:
    """Train and predict as a user does."""
    import torch

    import medseg as package

    model, cases = folder / "model.safetensors", json.loads((words.output / "fold.json").read_text())["val"]
    command = [sys.executable, "-m", "medseg"]
    train = ["train", words.output / "training.json", "-o", model, "--minutes", f"{minutes:g}", "--all", "--restart"]
    seconds = run([*command, *train, "--device", "cpu"], folder, words.threads)
    images = [case["image"] for case in cases]
    options = ["-m", model, "-o", folder / "labels", "--device", "cpu", "--threads", str(words.threads), "--no-picture"]
    predicting = run([*command, "predict", *images, *options], folder, words.threads)
    return {
        **log_of(model),
        "training_seconds": seconds,
        "prediction_seconds": predicting,
        "versions": {"medseg": package.__version__, "torch": torch.__version__},
    }


def log_of(model: Path) -> Record:
    """Return the steps that medseg took, and the patches in each."""
    folder = model.with_name(f"{model.stem}.training")
    rows = list(csv.DictReader((folder / "member-0.csv").read_text().splitlines()))
    return {"steps": int(rows[-1]["step"]), "batch": json.loads((folder / "setup.json").read_text())["batch"]}


def nnunet(minutes: float, folder: Path, words: Words, batch: int | None = None) -> Record:
    """Run nnU-Net in its own environment."""
    work = words.output / "nnunet_work"
    options = ["--work", work, *(["--batch", str(batch)] if batch else [])]
    return script([words.nnunet.absolute() / "bin" / "python", HERE / "nnunet_run.py"], minutes, folder, words, options)


def nnunet_batch_2(minutes: float, folder: Path, words: Words) -> Record:
    """Run nnU-Net with two patches in an update."""
    return nnunet(minutes, folder, words, batch=2)


def monai(minutes: float, folder: Path, words: Words) -> Record:
    """Run the plain MONAI script."""
    return script([sys.executable, HERE / "monai_script.py"], minutes, folder, words, [])


METHODS: dict[str, Callable[[float, Path, Words], Record]] = {
    "medseg": medseg,
    "nnunet": nnunet,
    "nnunet-batch2": nnunet_batch_2,
    "monai": monai,
}


def script(command: list[Any], minutes: float, folder: Path, words: Words, options: list[Any]) -> Record:
    """Run one of the scripts beside this one, and return its record."""
    given = ["--minutes", f"{minutes:g}", "--threads", str(words.threads), "--output", folder]
    run([*command, words.output / "fold.json", *given, *options], folder, words.threads)
    return dict(json.loads((folder / "record.json").read_text()))


def run(command: list[Any], folder: Path, threads: int) -> float:
    """Run a command with so many threads, its words in log.txt, and return its seconds."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    start = time.perf_counter()
    with (folder / "log.txt").open("a") as log:
        subprocess.run(
            [str(part) for part in command],
            env={**os.environ, **limits},
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
        )
    return time.perf_counter() - start


def scores(folder: Path, cases: list[dict[str, str]]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the mean Dice and HD95 (in mm; a missed label counts as the diagonal) of each label over the cases."""
    metrics = choose_metrics(["dice", "hd95"])
    settings = Settings(metrics=metrics, labels=tuple(Wanted(name, (value,)) for name, value in LABELS.items()))
    scored = []
    for case in cases:
        written = next(path for path in folder.iterdir() if path.name in written_names(case["case"]))
        scored.append(evaluate(read_labels(written), read_labels(Path(case["label"])), settings, case=case["case"]))
    found = {summary.name: summary.metrics for summary in summarise(scored, metrics)}
    return tuple({name: round(found[name][key].with_misses.mean, 4) for name in LABELS} for key in ("dice", "hd95"))


def written_names(case: str) -> set[str]:
    """Return how the label map of a case may be called."""
    return {f"{case}{ENDING}", f"{case}_seg{ENDING}"}


def machine() -> str:
    """Return the processor and how many cores of it there are."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}"


def write_tables(output: Path) -> None:
    """Write results.json and results.md from all results that there are."""
    results = [json.loads(path.read_text()) for path in output.glob("*/result.json")]
    results.sort(key=lambda result: (result["minutes"], list(METHODS).index(result["method"])))
    (output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    minutes = sorted({result["minutes"] for result in results})
    lines = ["Dice anterior / posterior, mean of the held-out cases", ""]
    lines += [f"| | {' | '.join(f'{m:g} min' for m in minutes)} |", "|---" * (len(minutes) + 1) + "|"]
    for method in METHODS:
        cells = [cell(results, method, m) for m in minutes]
        if any(cells):
            lines.append(f"| {method} | {' | '.join(cells)} |")
    lines += [
        "",
        "| run | HD95 mm | steps x patches | training s | before s | prediction s | threads | load | versions |",
    ]
    lines += ["|---" * 9 + "|", *(detail(result) for result in results), ""]
    lines += sorted({result["machine"] for result in results})
    (output / "results.md").write_text("\n".join(lines) + "\n")


def cell(results: list[Record], method: str, minutes: float) -> str:
    """Return the scores of a method after so many minutes, empty where there is none."""
    found = [result for result in results if (result["method"], result["minutes"]) == (method, minutes)]
    return " / ".join(f"{found[0]['dice'][label]:.3f}" for label in LABELS) if found else ""


def detail(result: Record) -> str:
    """Return a row on how a run went."""
    before = [result.get(key, 0.0) for key in ("plan_and_preprocess_seconds", "start_seconds")]
    return " | ".join(
        [
            f"| {result['method']}, {result['minutes']:g} min",
            " / ".join(f"{result['hd95_mm'][label]:.2f}" for label in LABELS),
            f"{result['steps']} x {result['batch']}",
            f"{result['training_seconds']:.0f}",
            " + ".join(f"{seconds:.0f}" for seconds in before if seconds) or "in the minutes",
            f"{result['prediction_seconds']:.0f}",
            str(result["threads"]),
            str(result["load_before"]),
            ", ".join(f"{name} {number}" for name, number in result["versions"].items()) + " |",
        ]
    )


if __name__ == "__main__":
    main()

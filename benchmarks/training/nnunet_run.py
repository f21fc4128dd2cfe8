"""nnU-Net v2 on the training cases of a fold for so many minutes, then its label maps of the held-out ones.

    VENV/bin/python nnunet_run.py FOLD.json --minutes 15 --threads 2 --work FOLDER --output FOLDER

Runs with the Python of an environment that holds nnunetv2 and not medseg. FOLD.json is written by `run.py`. nnU-Net's
three folders lie in --work, where `nnUNetv2_plan_and_preprocess -c 3d_fullres` runs once; it sees all cases of the
fold, as nnU-Net always does, and nothing is trained on those held out.

Everything is nnU-Net's default (plans, batch, augmentation with mirroring, SGD, loss, mirrored predictions) but for
this: an epoch is one iteration, its schedule of the learning rate runs over the minutes, and the online validation,
plots and intermediate checkpoints between epochs are left out, so that all the minutes go into training steps. They
begin with the first step. The final weights are used. `--batch 2` departs from the plan: an update then takes two
patches, for more updates in the same minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

DATASET, CONFIGURATION = "Dataset004_Hippocampus", "3d_fullres"
ENDING = ".nii.gz"
WORKERS = "nnUNet_n_proc_DA"  # of the augmentation
FOLDERS = {name: f"nnUNet_{name}" for name in ("raw", "preprocessed", "results")}


def main() -> None:
    """Prepare the data unless that is done, train, predict, and write what was done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fold", type=Path, help="JSON of cases")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for nnU-Net's own folders, used again")
    parser.add_argument("--output", type=Path, required=True, help="folder for labels/ and record.json")
    parser.add_argument("--batch", type=int, help="patches in an update; as planned when left out")
    words = parser.parse_args()
    work = words.work.resolve()
    os.environ.update({variable: str(work / name) for name, variable in FOLDERS.items()})
    os.environ.update({WORKERS: "1", "nnUNet_def_n_proc": str(words.threads)})  # the planner does not take 0
    fold = json.loads(words.fold.read_text())
    seconds = prepare(fold, work)
    os.environ[WORKERS] = "0"  # augmentation in this process, with all of its threads
    record = train_and_predict(fold, words) | {"plan_and_preprocess_seconds": seconds}
    (words.output / "record.json").write_text(json.dumps(record, indent=1) + "\n")


def prepare(fold: dict[str, Any], work: Path) -> float:
    """Bring the cases into nnU-Net's layout, let it plan and preprocess, and return the seconds that this took."""
    done = work / "prepared.json"
    if done.is_file():
        return float(json.loads(done.read_text())["seconds"])
    start = time.perf_counter()
    raw = work / "raw" / DATASET
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True, exist_ok=True)
    for case in fold["train"] + fold["val"]:
        shutil.copyfile(case["image"], raw / "imagesTr" / f"{case['case']}_0000{ENDING}")
        shutil.copyfile(case["label"], raw / "labelsTr" / f"{case['case']}{ENDING}")
    description = {
        "channel_names": dict(enumerate(fold["channels"])),
        "labels": {"background": 0, **fold["labels"]},
        "numTraining": len(fold["train"] + fold["val"]),
        "file_ending": ENDING,
    }
    (raw / "dataset.json").write_text(json.dumps(description))
    command = Path(sys.executable).with_name("nnUNetv2_plan_and_preprocess")
    subprocess.run([command, "-d", "4", "-c", CONFIGURATION, "-np", "1", "-npfp", "1"], check=True)
    splits = [{part: [case["case"] for case in fold[part]] for part in ("train", "val")}]
    (work / "preprocessed" / DATASET / "splits_final.json").write_text(json.dumps(splits))
    seconds = time.perf_counter() - start
    done.write_text(json.dumps({"seconds": seconds}))
    return seconds


def train_and_predict(fold: dict[str, Any], words: argparse.Namespace) -> dict[str, Any]:
    """Train for the minutes, write the label maps of the held-out cases, and return what was done."""
    import torch

    torch.set_num_threads(words.threads)
    start = time.perf_counter()
    trainer = new_trainer(words.minutes, words.batch)
    trainer.run_training()
    before = time.perf_counter() - start - trainer.seconds
    start = time.perf_counter()
    predict(trainer, fold["val"], words.output / "labels")
    return {
        "steps": trainer.steps,
        "batch": trainer.batch_size,
        "patch": [int(size) for size in trainer.configuration_manager.patch_size],
        "training_seconds": trainer.seconds,
        "start_seconds": before,
        "prediction_seconds": time.perf_counter() - start,
        "parameters": sum(weight.numel() for weight in trainer.network.parameters()),
        "versions": versions("nnunetv2", "batchgeneratorsv2", "dynamic-network-architectures", "torch", "numpy"),
    }


def new_trainer(minutes: float, batch: int | None) -> Any:
    """Return nnU-Net's trainer of fold 0 with a loop that ends when its minutes are over."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    class BudgetTrainer(nnUNetTrainer):
        """nnU-Net's default trainer; an epoch is one iteration, and the clock says which of all epochs it is."""

        steps, seconds = 0, 0.0

        def run_training(self) -> None:
            """Train until the minutes are over."""
            self.on_train_start()
            self.network.train()
            start = time.perf_counter()
            while self.seconds < 60 * minutes:
                self.lr_scheduler.step(self.num_epochs * self.seconds / (60 * minutes))
                loss = self.train_step(next(self.dataloader_train))["loss"]
                self.steps += 1
                self.seconds = time.perf_counter() - start
                print(f"step {self.steps}  loss {loss:.3f}  {self.seconds:.0f} s", flush=True)
            self.current_epoch = self.num_epochs
            self.on_train_end()

    folder = Path(os.environ[FOLDERS["preprocessed"]]) / DATASET
    plans = json.loads((folder / "nnUNetPlans.json").read_text()) | {"continue_training": False}
    if batch:
        plans["configurations"][CONFIGURATION]["batch_size"] = batch
    description = json.loads((folder / "dataset.json").read_text())
    return BudgetTrainer(plans, CONFIGURATION, 0, description, device=torch.device("cpu"))


def predict(trainer: Any, cases: list[dict[str, str]], folder: Path) -> None:
    """Write the label maps of cases by nnU-Net's own predictor, mirrored eightfold as is its default."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    folder.mkdir(parents=True, exist_ok=True)
    trainer.set_deep_supervision_enabled(False)
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    predictor.predict_from_files_sequential(
        [[case["image"]] for case in cases], [str(folder / case["case"]) for case in cases]
    )


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of installed packages."""
    from importlib.metadata import version

    return {package: version(package) for package in packages}


if __name__ == "__main__":
    main()

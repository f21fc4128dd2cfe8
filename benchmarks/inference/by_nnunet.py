"""nnU-Net v2: its preprocessor, `nnUNetPredictor` and export, called one after the other in this process.

Plans are written so that the network sees what medseg's sees: the same axes, spacing, patch and step, no mirroring.
Resampling functions are nnU-Net's defaults (skimage, order 3 for the scan and 1 for logits). Scans are turned to RAS by
its `NibabelIOWithReorient`. Its z-score has no percentiles, so intensities are clipped before it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from network import Clock, read_bundle
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

RESAMPLING = {"force_separate_z": None, "order_z": 0}
AXES = [2, 1, 0]  # nnU-Net reads k, j, i; the network wants i, j, k


class Method:
    """nnU-Net's predictor."""

    def __init__(self, job: dict[str, Any]) -> None:
        torch.set_num_threads(job["threads"])
        self.device, self._threads = job["device"], job["threads"]
        self._plan, members = read_bundle(job["bundle"])
        self._plans = PlansManager(plans(self._plan))
        self._configuration = self._plans.get_configuration("3d_fullres")
        self._description = {
            "channel_names": {str(n): channel["name"] for n, channel in enumerate(self._plan["channels"])},
            "labels": {"background": 0, **{label["name"]: label["value"] for label in self._plan["labels"]}},
            "file_ending": ".nii.gz",
        }
        self._predictor = nnUNetPredictor(
            tile_step_size=1 - job["overlap"],
            use_gaussian=True,
            use_mirroring=False,
            device=torch.device(job["device"]),
            allow_tqdm=False,
        )
        weights = [member.state_dict() for member in members]
        self._predictor.manual_initialization(
            members[0].to(job["device"]),
            self._plans,
            self._configuration,
            [{key: value.clone() for key, value in each.items()} for each in weights],
            self._description,
            "nnUNetTrainer",
            None,
        )
        self._clock = Clock()
        self._clock.watch(members[0])
        self._files = self._plans.image_reader_writer_class()
        self._preprocessor = self._configuration.preprocessor_class(verbose=False)

    def read(self, path: Path) -> tuple[np.ndarray, dict[str, Any]]:
        """Return a scan and its properties."""
        return self._files.read_images([str(path)])

    def predict(self, scan: tuple[np.ndarray, dict[str, Any]]) -> tuple[np.ndarray, dict[str, Any]]:
        """Return its label map and properties; the steps are those of `predict_single_npy_array`."""
        values, about = scan
        rule = self._plan["channels"][0]["intensity"]
        if rule["kind"] == "zscore":
            values = np.clip(values, *np.percentile(values, rule["clip_percentiles"]))
        given, _, about = self._preprocessor.run_case_npy(
            values, None, about, self._plans, self._configuration, self._description
        )
        logits = self._predictor.predict_logits_from_preprocessed_data(torch.from_numpy(given)).cpu()
        labels = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits,
            self._plans,
            self._configuration,
            self._predictor.label_manager,
            about,
            num_threads_torch=self._threads,
        )
        return labels, about

    def write(self, found: tuple[np.ndarray, dict[str, Any]], path: Path) -> None:
        """Write the label map."""
        labels, about = found
        self._files.write_seg(labels, str(path), about)

    def folder(self, given: Path, output: Path, workers: int) -> None:
        """Predict every scan of a folder, in nnU-Net's own way: so many processes prepare, and so many export."""
        self._predictor.predict_from_files(
            str(given),
            str(output),
            save_probabilities=False,
            overwrite=True,
            num_processes_preprocessing=workers,
            num_processes_segmentation_export=workers,
        )

    def counts(self) -> dict[str, float]:
        """Return the seconds in the network and the windows of the last scan (each member's apart)."""
        seconds, windows = self._clock.read()
        return {"network": seconds, "windows": windows // len(self._predictor.list_of_parameters)}

    def about(self) -> dict[str, Any]:
        """Return what else a reader wants to know."""
        from importlib.metadata import version

        names = ("nnunetv2", "torch", "numpy", "scikit-image")
        kind = "autocast" if self.device.startswith("cuda") else "float32"
        return {
            "backend": f"torch, {kind}, {self.device}",
            "versions": {name: version(name) for name in names},
        }


def plans(plan: dict[str, Any]) -> dict[str, Any]:
    """Return nnU-Net's plans for a plan of medseg."""
    rule = plan["channels"][0]["intensity"]
    ct = rule["kind"] == "window"
    names = {"mean": "mean", "std": "deviation", "percentile_00_5": "low", "percentile_99_5": "high"}
    found = {theirs: rule[ours] for theirs, ours in names.items()} if ct else {}
    configuration = {
        "data_identifier": "none",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 1,
        "patch_size": plan["patch"],
        "spacing": plan["spacing"],
        "normalization_schemes": ["CTNormalization" if ct else "ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {},
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **RESAMPLING},
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **RESAMPLING},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, **RESAMPLING},
    }
    return {
        "dataset_name": "Dataset001_Benchmark",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "NibabelIOWithReorient",
        "label_manager": "LabelManager",
        "transpose_forward": AXES,
        "transpose_backward": AXES,
        "foreground_intensity_properties_per_channel": {"0": found},
        "configurations": {"3d_fullres": configuration},
    }

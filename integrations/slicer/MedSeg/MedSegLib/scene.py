"""Volumes out of a MRML scene and segmentations into it: names, place, geometry, and where they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .logic import Result


def write_volume(scene: Any, volume: Any, path: Path) -> None:
    """Write a volume node as NRRD without compression, and leave its own storage as it is.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    storage = scene.CreateNodeByClass("vtkMRMLNRRDStorageNode")
    try:
        storage.SetFileName(str(path))
        storage.UseCompressionOff()
        if not storage.WriteData(volume):
            raise OSError(f"{volume.GetName()} could not be written to {path}")
    finally:
        storage.UnRegister(None)


def place(scene: Any, segmentation: Any, volume: Any, result: Result) -> None:
    """Put a segmentation that was loaded beside its volume: name, grid, transform, study, and where it comes from."""
    segmentation.SetName(scene.GenerateUniqueName(f"{volume.GetName()} segmentation"))
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    segmentation.SetAndObserveTransformNodeID(volume.GetTransformNodeID())  # it was written without the transform
    for name, value in provenance(result).items():
        segmentation.SetAttribute(f"medseg.{name}", value)
    storage = segmentation.GetStorageNode()
    if storage is not None:  # its file goes with the folder of the run; to be saved, it needs a place of its own
        segmentation.SetAndObserveStorageNodeID(None)
        scene.RemoveNode(storage)
    hierarchy = scene.GetSubjectHierarchyNode()
    item = hierarchy.GetItemByDataNode(volume)
    parent = hierarchy.GetItemParent(item) if item != hierarchy.GetInvalidItemID() else hierarchy.GetSceneItemID()
    own = hierarchy.GetItemByDataNode(segmentation)
    if own == hierarchy.GetInvalidItemID():
        hierarchy.CreateItem(parent, segmentation)
    else:
        hierarchy.SetItemParent(own, parent)


def provenance(result: Result) -> dict[str, str]:
    """Return what a segmentation should carry along: the model, and what the quality check says."""
    model = result.report.get("model")
    model = model if isinstance(model, dict) else {}
    said = {
        "model": f"{model.get('name')} {model.get('version')}",
        "sha256": str(model.get("sha256")),
        "version": str(result.report.get("medseg")),
        "verdict": result.verdict,
        "reasons": "; ".join(result.reasons),
    }
    return {name: value for name, value in said.items() if value}

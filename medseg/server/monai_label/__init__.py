"""The protocol of MONAI Label, as far as its module for 3D Slicer speaks it: scans in, label maps out.

What that module does not say anywhere but needs: `/info/` without a `config` at its top; voxel values that count the
labels in the order in which they are named; one file in the answer, whose name ends in `.nii.gz`.
"""

from medseg.server.monai_label.routes import routes

__all__ = ["routes"]

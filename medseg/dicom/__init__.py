"""DICOM in and out: series, segmentations, structure sets and reports, with the geometry always right."""

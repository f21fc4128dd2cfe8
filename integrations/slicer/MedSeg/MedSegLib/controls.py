"""What the user sees and sets: the fields of the panel, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ctk
import qt
import slicer

from .install import TORCH
from .logic import Model, Result
from .parameter import BACKENDS, DEVICES, PRECISIONS, Parameter

_COLOURS = {"ok": "#2e7d32", "check": "#b26a00", "refuse": "#c62828"}
_VOLUME = "vtkMRMLScalarVolumeNode"


def section(layout: Any, title: str, *, collapsed: bool = False) -> Any:
    """Add a part that can be folded; return the form in it."""
    button = ctk.ctkCollapsibleButton()
    button.setText(title)
    button.setCollapsed(collapsed)
    layout.addWidget(button)
    return qt.QFormLayout(button)


def button(text: str, tip: str) -> Any:
    """Return a button."""
    made = qt.QPushButton(text)
    made.setToolTip(tip)
    return made


def choice(words: Sequence[str], tip: str) -> Any:
    """Return a box to choose from."""
    made = qt.QComboBox()
    made.addItems(list(words))
    made.setToolTip(tip)
    return made


def line(placeholder: str, tip: str) -> Any:
    """Return a line for text."""
    made = qt.QLineEdit()
    made.setPlaceholderText(placeholder)
    made.setToolTip(tip)
    return made


def check(text: str, tip: str) -> Any:
    """Return a box to tick."""
    made = qt.QCheckBox(text)
    made.setToolTip(tip)
    return made


class InstallFields:
    """Which medseg, and how to get it."""

    def __init__(self, form: Any) -> None:
        self.status = qt.QLabel("looking for medseg")
        self.status.setWordWrap(True)
        self.program = ctk.ctkPathLineEdit()
        self.program.setToolTip("A medseg of your own; empty: the one installed below, or one on PATH.")
        self.source = line("medseg", "What pip installs: a package name, a wheel, or the folder of a clone.")
        self.torch = choice(TORCH, "PyTorch: CPU build where no NVIDIA card is found; CPU build; what pip would take.")
        self.install = button("Install or update", "Into an environment of its own; Slicer's Python is not changed.")
        form.addRow("State:", self.status)
        form.addRow("Program:", self.program)
        form.addRow("Source:", self.source)
        form.addRow("PyTorch:", self.torch)
        form.addRow(self.install)


class InputFields:
    """Which volumes, and which model: several volumes, or one for each channel of the model."""

    def __init__(self, form: Any) -> None:
        self.model = choice((), "Models by name; more come with 'Add a model'.")
        self.about = qt.QLabel("")
        self.about.setWordWrap(True)
        self.add_model = button("Add a model file", "Copies a .safetensors file of medseg into your store of models.")
        self.volumes = slicer.qMRMLCheckableNodeComboBox()
        self._prepare(self.volumes)
        self._label = qt.QLabel("Volumes:")
        form.addRow("Model:", self.model)
        form.addRow("", self.about)
        form.addRow("", self.add_model)
        form.addRow(self._label, self.volumes)
        self._channels = qt.QFormLayout()
        form.addRow(self._channels)
        self._selectors: list[tuple[str, Any]] = []

    def offer(self, models: Sequence[Model], chosen: str) -> None:
        """Offer models by name."""
        names = [model.name for model in models]
        default = next((model.name for model in models if model.default), "")
        self.model.clear()
        self.model.addItems(names)
        self.model.setCurrentIndex(names.index(chosen) if chosen in names else max(0, self.model.findText(default)))

    def describe(self, model: Model | None) -> None:
        """Say what a model finds, and ask for its channels if it has several."""
        labels = ", ".join(model.labels) if model else ""
        self.about.setText(f"{model.summary}. Finds: {labels}" if model else "")
        for _, selector in self._selectors:
            self._channels.removeRow(selector)
        several = model is not None and len(model.channels) > 1
        self._selectors = []
        for name in model.channels if model and several else ():
            selector = slicer.qMRMLNodeComboBox()
            self._prepare(selector)
            self._channels.addRow(f"{name}:", selector)
            self._selectors.append((name, selector))
        self.volumes.setVisible(not several)
        self._label.setVisible(not several)

    def cases(self) -> list[dict[str, Any]]:
        """Return the volume of each channel for each case that the user chose."""
        if not self._selectors:
            return [{"": volume} for volume in self.volumes.checkedNodes()]
        chosen = {name: selector.currentNode() for name, selector in self._selectors}
        return [chosen] if all(chosen.values()) else []

    def _prepare(self, selector: Any) -> None:
        selector.nodeTypes = [_VOLUME]
        selector.showChildNodeTypes = False  # label maps and colour pictures are no scans
        selector.addEnabled = False
        selector.removeEnabled = False
        selector.setMRMLScene(slicer.mrmlScene)


class OptionFields:
    """How to segment."""

    def __init__(self, form: Any) -> None:
        self.device = choice(DEVICES, "Where the network runs.")
        self.backend = choice(BACKENDS, "What runs it; openvino is fast on a CPU (install medseg[cpu]).")
        self.precision = choice(PRECISIONS, "Empty: as medseg chooses.")
        self.threads = qt.QSpinBox()
        self.threads.setToolTip("CPU threads; 0: as medseg chooses.")
        self.overlap = line("as the model says", "Of neighbouring windows, between 0 and 1.")
        self.memory = line("no limit", "Most that may be held, such as 4GB.")
        self.mirror = check("look at mirrored windows too", "Only for models that were trained on such.")
        self.strict = check("do not load what the quality check refuses", "The verdict is shown in any case.")
        self.surface = check("show in 3D", "Make closed surfaces of all segments.")
        for name in ("device", "backend", "precision", "threads", "overlap", "memory"):
            form.addRow(f"{name.capitalize()}:", getattr(self, name))
        for name in ("mirror", "strict", "surface"):
            form.addRow("", getattr(self, name))

    def show(self, parameter: Parameter) -> None:
        """Set all fields."""
        for name in ("device", "backend", "precision"):
            box = getattr(self, name)
            box.setCurrentIndex(max(0, box.findText(getattr(parameter, name))))
        self.threads.setValue(parameter.threads)
        self.overlap.setText(parameter.overlap)
        self.memory.setText(parameter.memory)
        self.mirror.setChecked(parameter.mirror)
        self.strict.setChecked(parameter.strict)

    def parameter(self, model: str) -> Parameter:
        """Return what the fields say."""
        return Parameter(
            model=model,
            device=self.device.currentText,
            backend=self.backend.currentText,
            precision=self.precision.currentText,
            threads=self.threads.value,
            overlap=self.overlap.text,
            memory=self.memory.text,
            mirror=self.mirror.checked,
            strict=self.strict.checked,
        )


class ResultTable:
    """A row for each volume: the verdict of the quality check with its reasons, and the size of each segment."""

    def __init__(self, layout: Any) -> None:
        self.table = qt.QTableWidget(0, 3)
        self.table.setHorizontalHeaderLabels(["Volume", "Quality check", "Segments"])
        self.table.setEditTriggers(qt.QAbstractItemView.NoEditTriggers)
        self.table.horizontalHeader().setStretchLastSection(True)
        layout.addWidget(self.table)

    def add(self, name: str, result: Result, problem: str) -> None:
        """Add a row."""
        row = self.table.rowCount
        self.table.insertRow(row)
        said = f"{result.verdict}: {'; '.join(result.reasons)}" if result.reasons else result.verdict
        cells = (name, problem or said, ", ".join(result.sizes))
        for column, text in enumerate(cells):
            item = qt.QTableWidgetItem(text)
            item.setToolTip(text)
            if column == 1:
                item.setForeground(qt.QBrush(qt.QColor(_COLOURS.get("refuse" if problem else result.verdict, "gray"))))
            self.table.setItem(row, column, item)
        self.table.resizeColumnsToContents()

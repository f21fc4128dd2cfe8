"""The panel of the module: it connects the fields with the logic, and looks at what runs five times a second."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import qt
import slicer

from . import install
from .chain import Chain, Command, Done, TroubleError
from .controls import InputFields, InstallFields, OptionFields, ResultTable, button, section
from .environment import cleaned, data_folder
from .logic import Answer, Model, Result, Run, ask
from .parameter import Parameter
from .process import Process, Start
from .progress import in_words
from .scene import place, write_volume
from .workspace import new_workspace, remove

_INTERVAL = 200  # milliseconds between two looks


class Panel:
    """All of the module's widgets, in the layout that Slicer gives.

    Parameters
    ----------
    layout : QLayout
        Of the module.
    start : function
        Starts a program.
    """

    def __init__(self, layout: Any, start: Start = Process) -> None:
        self._start = start
        self._environment = cleaned({**slicer.util.startupEnvironment(), "SLICER_HOME": slicer.app.slicerHome})
        self._settings = slicer.app.userSettings()
        self._found: install.Found | None = None
        self._models: dict[str, Model] = {}
        self._chain: Chain | None = None
        self._chain_folder: Path | None = None
        self._run: Run | None = None
        self._build(layout)
        self._connect()
        self._observer = slicer.mrmlScene.AddObserver(slicer.mrmlScene.StartCloseEvent, self._on_scene_close)
        self.refresh()

    def refresh(self) -> None:
        """Look for medseg, and ask it what it can do."""
        if self._busy():
            return
        self._keep("program", self.installing.program.currentPath)
        try:
            self._found = install.find(self._environment, named=self.installing.program.currentPath)
        except TroubleError as error:
            self._found = None
            self._state(str(error))
            return
        if self._found is None:
            self._state("medseg is not installed yet: press 'Install or update'")
            return
        self._drive(ask(self._found))

    def close(self) -> None:
        """End what runs, and let go of the scene."""
        self._on_cancel()
        slicer.mrmlScene.RemoveObserver(self._observer)

    def _build(self, layout: Any) -> None:
        self.installing = InstallFields(section(layout, "medseg"))
        form = section(layout, "Segment")
        self.input = InputFields(form)
        self.apply = button("Segment", "Segment the chosen volumes; Slicer stays usable meanwhile.")
        self.cancel = button("Cancel", "End medseg and all that it has started.")
        self.bar = qt.QProgressBar()
        self.bar.setRange(0, 1000)
        self.stage = qt.QLabel("")
        for row in (self.apply, self.cancel, self.bar, self.stage):
            form.addRow(row)
        self.options = OptionFields(section(layout, "Options", collapsed=True))
        self.results = ResultTable(layout)
        self.log = qt.QPlainTextEdit()
        self.log.setReadOnly(True)
        self.log.setMaximumBlockCount(2000)
        section(layout, "Messages", collapsed=True).addRow(self.log)
        layout.addStretch(1)
        self.timer = qt.QTimer()
        self.timer.setInterval(_INTERVAL)
        self._show_settings()
        self._enable()

    def _connect(self) -> None:
        self.installing.install.connect("clicked()", self._on_install)
        self.installing.program.connect("currentPathChanged(QString)", self._on_program)
        self.input.model.connect("currentIndexChanged(int)", self._on_model)
        self.input.add_model.connect("clicked()", self._on_add_model)
        self.apply.connect("clicked()", self._on_apply)
        self.cancel.connect("clicked()", self._on_cancel)
        self.timer.connect("timeout()", self._on_tick)

    def _show_settings(self) -> None:
        kept = {
            name: self._settings.value(f"MedSeg/{name}") for name in (*Parameter().as_settings(), "program", "source")
        }
        self.parameter = Parameter.from_settings(kept)
        self.options.show(self.parameter)
        self.installing.program.setCurrentPath(kept["program"] or "")
        self.installing.source.setText(kept["source"] or "medseg")

    def _keep(self, name: str, value: str) -> None:
        self._settings.setValue(f"MedSeg/{name}", value)

    def _on_program(self, _path: str) -> None:
        self.refresh()

    def _on_model(self, _index: int) -> None:
        self.input.describe(self._models.get(self.input.model.currentText))

    def _on_install(self) -> None:
        self._keep("source", self.installing.source.text)
        home = Path(slicer.app.slicerHome)
        python = home / "bin" / ("PythonSlicer.exe" if os.name == "nt" else "PythonSlicer")
        wish = install.Wish(
            source=self.installing.source.text.strip() or "medseg",
            torch=self.installing.torch.currentText,
            slicer_python=str(python) if python.exists() else "",
            which=lambda name: install.which(name, self._environment),
        )
        self._drive(install.install(data_folder(self._environment), wish))

    def _on_add_model(self) -> None:
        name = qt.QFileDialog.getOpenFileName(None, "Model", "", "Models of medseg (*.safetensors)")
        if name and self._found:
            self._drive(_add_model(self._found, name))

    def _on_apply(self) -> None:
        cases = self.input.cases()
        if self._found is None or not cases:
            slicer.util.warningDisplay("Install medseg and choose a model, and a volume or one for each channel.")
            return
        self.parameter = self.options.parameter(self.input.model.currentText)
        for name, value in self.parameter.as_settings().items():
            self._keep(name, value)
        self._run = Run(self._start)
        try:
            for volumes in cases:
                first = next(iter(volumes.values()))
                for volume, path in zip(volumes.values(), self._run.add(first.GetID(), tuple(volumes))):
                    write_volume(slicer.mrmlScene, volume, path)
            self._run.begin(self._found, self._environment, self.parameter)
        except (OSError, TroubleError) as error:
            self._end_run()
            slicer.util.errorDisplay(str(error))
            return
        self._watch()

    def _on_cancel(self) -> None:
        if self._chain is not None:
            self._chain.cancel()
            self._end_chain()
        if self._run is not None:
            self._run.cancel()
            self._end_run()

    def _on_scene_close(self, _scene: Any, _event: Any) -> None:
        if self._run is not None:  # its volumes are going away
            self._on_cancel()

    def _on_tick(self) -> None:
        if self._chain is not None:
            for line in self._chain.tick():
                self.log.appendPlainText(line)
            self.stage.setText(self._chain.title)
            if self._chain.finished:
                self._end_chain()
        if self._run is not None:
            for result in self._run.tick():
                self._show(result)
            self.bar.setValue(round(self._run.fraction * 1000))
            self.stage.setText(", ".join(filter(None, (self._run.stage, in_words(self._run.seconds_left)))))
            if self._run.finished:
                self._end_run()

    def _show(self, result: Result) -> None:
        volume = slicer.mrmlScene.GetNodeByID(result.key)
        name, problem = volume.GetName() if volume else "a volume that is gone", result.problem
        if volume is not None and result.segmentation is not None:
            try:
                segmentation = slicer.util.loadSegmentation(str(result.segmentation))
            except RuntimeError as error:
                problem = f"the segmentation could not be loaded: {error}"
            else:
                place(slicer.mrmlScene, segmentation, volume, result)
                if self.options.surface.checked:
                    segmentation.CreateClosedSurfaceRepresentation()
        self.results.add(name, result, problem)

    def _drive(self, work: Generator[Command, Done, Any]) -> None:
        self._chain_folder = new_workspace()
        self._chain = Chain(work, self._start, self._environment, self._chain_folder)
        self._watch()

    def _end_chain(self) -> None:
        chain, self._chain = self._chain, None
        if self._chain_folder is not None:
            remove(self._chain_folder)
        self._idle()
        if chain is None or chain.cancelled:
            self._state("cancelled")
        elif chain.problem:
            self._state(chain.problem)
            slicer.util.errorDisplay(chain.problem)
        elif isinstance(chain.result, Answer):
            self._offer(chain.result)
        else:
            self.refresh()

    def _offer(self, answer: Answer) -> None:
        where = self._found.where if self._found else ""
        self._state(f"medseg {answer.version} in {where}")
        self._models = {model.name: model for model in answer.models}
        self.input.offer(answer.models, self.parameter.model)
        self._on_model(0)

    def _end_run(self) -> None:
        if self._run is None:
            return
        run, self._run = self._run, None
        for line in run.log:
            self.log.appendPlainText(line)
        run.close()
        self._idle()
        self.stage.setText(run.stage)

    def _busy(self) -> bool:
        return self._chain is not None or self._run is not None

    def _watch(self) -> None:
        self.bar.setValue(0)
        self._enable()
        self.timer.start()

    def _idle(self) -> None:
        self.timer.stop()
        self.bar.setValue(0)
        self.stage.setText("")
        self._enable()

    def _state(self, text: str) -> None:
        self.installing.status.setText(text)
        self._enable()

    def _enable(self) -> None:
        free = not self._busy()
        for widget in (self.installing.install, self.installing.program):
            widget.setEnabled(free)
        for widget in (self.apply, self.input.add_model):
            widget.setEnabled(free and self._found is not None)
        self.cancel.setEnabled(not free)


def _add_model(medseg: install.Found, file: str) -> Generator[Command, Done, None]:
    words = (*medseg.words, "models", "add", file)
    (yield Command("adding a model", words)).must(f"{file} could not be added")

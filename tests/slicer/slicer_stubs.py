"""Stand-ins for slicer, qt and ctk: only what the real ones have, and strict, so that a wrong name fails.

Signals, methods and properties are those of Qt 5.15 (asked for them by its own meta-objects) and of Slicer's and CTK's
headers; as in Slicer, a property is an attribute and not a method.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path


class Widget:
    """A widget: signals are connected by their signature, and emitted by the test."""

    signals = ()

    def __init__(self, *arguments):
        self.slots, self.visible, self.enabled, self.toolTip = {}, True, True, ""

    def connect(self, signature, slot):
        assert signature in self.signals, f"{type(self).__name__} has no signal {signature}"
        assert callable(slot)
        self.slots.setdefault(signature, []).append(slot)

    def emit(self, signature, *values):
        assert self.slots.get(signature), f"nobody listens to {signature}"
        for slot in self.slots[signature]:
            slot(*values)

    def setToolTip(self, text):
        self.toolTip = text

    def setVisible(self, visible):
        self.visible = visible

    def setEnabled(self, enabled):
        self.enabled = enabled


class Label(Widget):
    def __init__(self, text=""):
        super().__init__()
        self.text = text

    def setText(self, text):
        assert isinstance(text, str)
        self.text = text

    def setWordWrap(self, on):
        pass


class Button(Label):
    signals = ("clicked()", "clicked(bool)", "toggled(bool)")

    def setChecked(self, on):
        self.checked = on

    checked = False


class CollapsibleButton(Button):
    def setCollapsed(self, on):
        self.collapsed = on


class LineEdit(Label):
    signals = ("textChanged(QString)", "editingFinished()")

    def setPlaceholderText(self, text):
        pass


class PathLineEdit(Widget):
    signals = ("currentPathChanged(QString)", "validInputChanged(bool)")

    def __init__(self):
        super().__init__()
        self.currentPath = ""

    def setCurrentPath(self, path):
        self.currentPath = path
        for slot in self.slots.get("currentPathChanged(QString)", []):
            slot(path)


class ComboBox(Widget):
    signals = ("currentIndexChanged(int)", "activated(int)")

    def __init__(self):
        super().__init__()
        self.words, self.currentIndex = [], -1

    def addItems(self, words):
        assert isinstance(words, list)
        self.words += words
        if self.words and self.currentIndex < 0:
            self.setCurrentIndex(0)

    def clear(self):
        self.words = []
        self.setCurrentIndex(-1)

    def findText(self, text):
        return self.words.index(text) if text in self.words else -1

    def setCurrentIndex(self, index):
        self.currentIndex = index if index < len(self.words) else -1
        for slot in self.slots.get("currentIndexChanged(int)", []):
            slot(self.currentIndex)

    @property
    def currentText(self):
        return self.words[self.currentIndex] if self.currentIndex >= 0 else ""


class SpinBox(Widget):
    signals = ("valueChanged(int)",)
    value = 0

    def setValue(self, value):
        assert isinstance(value, int)
        self.value = value


class ProgressBar(SpinBox):
    def setRange(self, low, high):
        self.range = (low, high)


class PlainTextEdit(Widget):
    def __init__(self):
        super().__init__()
        self.lines = []

    def appendPlainText(self, text):
        self.lines.append(text)

    def setReadOnly(self, on):
        pass

    def setMaximumBlockCount(self, count):
        pass


class Timer(Widget):
    signals = ("timeout()",)
    active = False

    def setInterval(self, milliseconds):
        assert isinstance(milliseconds, int)

    def start(self):
        self.active = True

    def stop(self):
        self.active = False


class Layout:
    def __init__(self, parent=None):
        self.rows = []

    def addRow(self, *row):
        assert 1 <= len(row) <= 2
        self.rows.append(row)

    def addWidget(self, widget):
        assert isinstance(widget, Widget)
        self.rows.append((widget,))

    def addStretch(self, factor):
        pass

    def removeRow(self, widget):
        (row,) = [row for row in self.rows if widget in row]
        self.rows.remove(row)


class TableItem:
    def __init__(self, text):
        assert isinstance(text, str)
        self.text, self.tip = text, ""

    def setToolTip(self, text):
        self.tip = text

    def setForeground(self, brush):
        self.brush = brush


class Header:
    def setStretchLastSection(self, on):
        pass


class Table(Widget):
    def __init__(self, rows, columns):
        super().__init__()
        self.columns, self.cells, self.rowCount = columns, {}, rows

    def setHorizontalHeaderLabels(self, labels):
        assert len(labels) == self.columns

    def setEditTriggers(self, triggers):
        pass

    def horizontalHeader(self):
        return Header()

    def insertRow(self, row):
        self.rowCount += 1

    def setItem(self, row, column, item):
        assert row < self.rowCount
        assert column < self.columns
        self.cells[row, column] = item

    def resizeColumnsToContents(self):
        pass

    def texts(self):
        return [[self.cells[row, column].text for column in range(self.columns)] for row in range(self.rowCount)]


class NodeComboBox(Widget):
    signals = ("currentNodeChanged(vtkMRMLNode*)",)
    node = None

    def setMRMLScene(self, scene):
        self.scene = scene

    def currentNode(self):
        return self.node


class CheckableNodeComboBox(NodeComboBox):
    signals = ("checkedNodesChanged()",)

    def __init__(self):
        super().__init__()
        self.nodes = []

    def checkedNodes(self):
        return list(self.nodes)


class Node:
    """A volume or a segmentation: notes what it is told."""

    def __init__(self, name="", node_id="", file=None):
        self.name, self.id, self.file, self.attributes, self.told = name, node_id, file, {}, {}

    def GetName(self):
        return self.name

    def SetName(self, name):
        self.name = name

    def GetID(self):
        return self.id

    def GetTransformNodeID(self):
        return "transform of " + self.name

    def GetStorageNode(self):
        return None

    def SetAttribute(self, name, value):
        assert isinstance(value, str)
        self.attributes[name] = value

    def SetReferenceImageGeometryParameterFromVolumeNode(self, volume):
        self.told["grid"] = volume

    def SetAndObserveTransformNodeID(self, transform):
        self.told["transform"] = transform

    def CreateClosedSurfaceRepresentation(self):
        self.told["surface"] = True


class Storage:
    def SetFileName(self, path):
        self.path = path

    def UseCompressionOff(self):
        pass

    def WriteData(self, node):
        if node.file is None:
            return 0
        Path(self.path).write_bytes(Path(node.file).read_bytes())
        return 1

    def UnRegister(self, owner):
        assert owner is None


class Hierarchy:
    """All volumes lie in the study 7."""

    def __init__(self):
        self.parents = {}

    def GetInvalidItemID(self):
        return 0

    def GetSceneItemID(self):
        return 1

    def GetItemByDataNode(self, node):
        return 100 + id(node)

    def GetItemParent(self, item):
        return 7

    def SetItemParent(self, item, parent):
        self.parents[item] = parent

    def CreateItem(self, parent, node):
        raise AssertionError("Slicer has made an item already")


class Scene:
    StartCloseEvent = 66000

    def __init__(self):
        self.nodes, self.observers, self.hierarchy = {}, {}, Hierarchy()

    def AddObserver(self, event, function):
        self.observers[len(self.observers) + 1] = function
        return len(self.observers)

    def RemoveObserver(self, tag):
        del self.observers[tag]

    def CreateNodeByClass(self, name):
        assert name == "vtkMRMLNRRDStorageNode"
        return Storage()

    def GetNodeByID(self, node_id):
        return self.nodes.get(node_id)

    def GenerateUniqueName(self, name):
        return name

    def GetSubjectHierarchyNode(self):
        return self.hierarchy


class Settings:
    def __init__(self):
        self.kept = {}

    def value(self, name):
        return self.kept.get(name)

    def setValue(self, name, value):
        self.kept[name] = value


def modules(environment, home):
    """Return the stand-ins by name; `slicer` notes what it shows and loads."""
    qt, ctk, slicer = (types.ModuleType(name) for name in ("qt", "ctk", "slicer"))
    qt.QLabel, qt.QPushButton, qt.QComboBox, qt.QLineEdit, qt.QCheckBox = Label, Button, ComboBox, LineEdit, Button
    qt.QSpinBox, qt.QProgressBar, qt.QPlainTextEdit, qt.QTimer = SpinBox, ProgressBar, PlainTextEdit, Timer
    qt.QFormLayout, qt.QTableWidget, qt.QTableWidgetItem = Layout, Table, TableItem
    qt.QBrush, qt.QColor = (lambda colour: colour), (lambda name: name)
    qt.QAbstractItemView = types.SimpleNamespace(NoEditTriggers=0)
    qt.QFileDialog = types.SimpleNamespace(getOpenFileName=lambda parent, title, folder, kinds: "")
    ctk.ctkCollapsibleButton, ctk.ctkPathLineEdit = CollapsibleButton, PathLineEdit
    slicer.qMRMLNodeComboBox, slicer.qMRMLCheckableNodeComboBox = NodeComboBox, CheckableNodeComboBox
    slicer.mrmlScene, slicer.shown, slicer.loaded, settings = Scene(), [], [], Settings()
    slicer.app = types.SimpleNamespace(slicerHome=str(home), userSettings=lambda: settings)

    def load(path):
        assert Path(path).read_bytes().startswith(b"NRRD")
        slicer.loaded.append(Node("loaded", "seg", path))
        return slicer.loaded[-1]

    slicer.util = types.SimpleNamespace(
        startupEnvironment=lambda: dict(environment),
        loadSegmentation=load,
        errorDisplay=slicer.shown.append,
        warningDisplay=slicer.shown.append,
    )
    scripted = types.ModuleType("slicer.ScriptedLoadableModule")
    for name in ("ScriptedLoadableModule", "ScriptedLoadableModuleWidget", "ScriptedLoadableModuleTest"):
        setattr(scripted, name, type(name, (_Scripted,), {}))
    return {"qt": qt, "ctk": ctk, "slicer": slicer, "slicer.ScriptedLoadableModule": scripted}


class _Scripted:
    def __init__(self, parent=None):
        self.parent, self.layout = parent, Layout()

    def setup(self):
        pass


def forget():
    """Forget what was imported with stand-ins."""
    for name in ("MedSeg", "MedSegLib.widget", "MedSegLib.controls"):
        sys.modules.pop(name, None)

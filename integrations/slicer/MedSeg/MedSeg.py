"""The module MedSeg of 3D Slicer; what it does is in MedSegLib."""

from __future__ import annotations

import time
from typing import Any

import slicer
from MedSegLib import install
from MedSegLib.environment import cleaned
from MedSegLib.logic import Run
from MedSegLib.parameter import Parameter
from MedSegLib.process import Process
from MedSegLib.scene import place, write_volume
from MedSegLib.widget import Panel
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)


class MedSeg(ScriptedLoadableModule):
    """What Slicer shows of the module."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = "MedSeg"
        parent.categories = ["Segmentation"]
        parent.dependencies = []
        parent.contributors = ["The medseg developers"]
        parent.helpText = (
            "Segments volumes with medseg, which runs as a program in an environment of its own. "
            "For research use only; not a medical device."
        )
        parent.acknowledgementText = "medseg is Apache-2.0; the weights of its models have their own licences."


class MedSegWidget(ScriptedLoadableModuleWidget):
    """The module's panel."""

    def setup(self) -> None:
        """Build the panel; called once."""
        ScriptedLoadableModuleWidget.setup(self)
        self.panel = Panel(self.layout)

    def enter(self) -> None:
        """Look again for a medseg that may have been installed meanwhile."""
        self.panel.refresh()

    def cleanup(self) -> None:
        """End what runs; called when the module or Slicer is closed."""
        self.panel.close()


class MedSegTest(ScriptedLoadableModuleTest):
    """The self-test, for Slicer's developer mode: segments a sample volume if medseg is there."""

    def setUp(self) -> None:
        """Begin with an empty scene."""
        slicer.mrmlScene.Clear()

    def runTest(self) -> None:
        """Run all tests."""
        self.setUp()
        self.test_segments_a_sample()

    def test_segments_a_sample(self) -> None:
        """A sample head becomes a segmentation on its own grid, in its own place."""
        import SampleData

        environment = cleaned(slicer.util.startupEnvironment())
        medseg = install.find(environment)
        if medseg is None:
            self.skipTest("medseg is not installed")
        volume = SampleData.downloadSample("MRHead")
        run = Run(Process)
        self.addCleanup(run.close)
        (path,) = run.add(volume.GetID())
        write_volume(slicer.mrmlScene, volume, path)
        run.begin(medseg, environment, Parameter())
        results = []
        while not run.finished:
            results += run.tick()
            time.sleep(0.1)
        (result,) = results
        self.assertEqual(result.problem, "")
        segmentation = slicer.util.loadSegmentation(str(result.segmentation))
        place(slicer.mrmlScene, segmentation, volume, result)
        self.assertGreater(segmentation.GetSegmentation().GetNumberOfSegments(), 0)
        self.assertEqual(segmentation.GetAttribute("medseg.verdict"), result.verdict)

from medseg.bundle import Bundle as Bundle
from medseg.errors import MedsegError as MedsegError
from medseg.geometry import Geometry as Geometry
from medseg.inference import Predictor as Predictor
from medseg.io import read as read
from medseg.io import read_labels as read_labels
from medseg.io import write as write
from medseg.plan import Plan as Plan
from medseg.volume import LabelMap as LabelMap
from medseg.volume import Volume as Volume

__version__: str

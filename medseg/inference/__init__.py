"""From a scan to a label map: sliding window, devices, and the `Predictor` that holds them together."""

from medseg.inference.network import load_network, new_network
from medseg.inference.predictor import Prediction, Predictor
from medseg.inference.sliding import gaussian_weights, slide, window_starts

__all__ = ["Prediction", "Predictor", "gaussian_weights", "load_network", "new_network", "slide", "window_starts"]

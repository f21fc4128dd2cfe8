from medseg.inference.network import load_network as load_network
from medseg.inference.network import new_network as new_network
from medseg.inference.predictor import Prediction as Prediction
from medseg.inference.predictor import Predictor as Predictor
from medseg.inference.windows import gaussian_weights as gaussian_weights
from medseg.inference.windows import window_starts as window_starts

from .harmonize import Harmony as Harmony
from .protocol import Protocol as Protocol
from .psf import Psf as Psf
from .sample import NotEstimable as NotEstimable
from .sample import Sample as Sample
from .sensor_model import Observation as Observation
from .simulate import SimulatedPair as SimulatedPair

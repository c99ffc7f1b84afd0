from .run import train as train
from .settings import TrainConfig as TrainConfig
from .settings import load_training as load_training

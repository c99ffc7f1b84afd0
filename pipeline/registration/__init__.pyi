from .estimate import Estimate as Estimate
from .estimate import register as register
from .record import Registration as Registration

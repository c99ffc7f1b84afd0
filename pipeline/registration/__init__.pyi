from .estimate import Estimate as Estimate
from .record import Registration as Registration

from .metrics import Comparison as Comparison
from .metrics import Scores as Scores
from .standard_error import estimate_errors as estimate_errors
from .trials import Trial as Trial
from .trials import evaluate as evaluate

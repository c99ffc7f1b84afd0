from .cluster import spread_over as spread_over
from .engine import run_batches as run_batches
from .exchange import drop_abandoned as drop_abandoned
from .exchange import place_of as place_of

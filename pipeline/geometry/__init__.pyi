from .box import Box as Box
from .displacement import Displacement as Displacement
from .grids import GridRecord as GridRecord
from .grids import NestedGrids as NestedGrids
from .grids import nest as nest
from .resample import warp as warp
from .tiling import Tile as Tile
from .tiling import TilePlan as TilePlan

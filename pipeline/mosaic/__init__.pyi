from .run import mosaic_products as mosaic_products
from .settings import AreaConfig as AreaConfig

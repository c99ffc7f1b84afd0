from .catalogs.sensors import Source as Source
from .catalogs.sensors import open_scene as open_scene
from .pipeline.config import RunConfig as RunConfig
from .pipeline.config import load_config as load_config
from .pipeline.products.product import Product as Product
from .pipeline.products.publish import verify as verify
from .pipeline.run import run as run

from .config import RunConfig as RunConfig
from .config import load_config as load_config
from .products.product import Product as Product
from .products.publish import verify as verify

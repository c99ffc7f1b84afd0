from .draft import BadProduct as BadProduct
from .draft import Draft as Draft
from .product import Product as Product
from .publish import verify as verify

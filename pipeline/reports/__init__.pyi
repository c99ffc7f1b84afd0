from .comparison_page import write_page as write_page
from .index_page import write_index as write_index
from .product_page import write_product_page as write_product_page

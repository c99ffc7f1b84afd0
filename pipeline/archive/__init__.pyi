from .backlog import Backlog as Backlog
from .backlog import take_stock as take_stock
from .night import Night as Night
from .night import work_off as work_off
from .settings import ArchiveConfig as ArchiveConfig
from .settings import load_archive as load_archive

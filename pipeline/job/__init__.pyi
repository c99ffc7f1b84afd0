from .completeness import MosaicSummary as MosaicSummary
from .folder import Job as Job
from .folder import StagedJob as StagedJob
from .ledger import Ledger as Ledger
from .ledger import TileRecord as TileRecord
from .records import JobRecord as JobRecord
from .records import StagedRecord as StagedRecord

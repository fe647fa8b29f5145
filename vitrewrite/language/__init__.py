"""The language of specs: parsing, checking and formatting, without torch."""

from .claims import METRICS as METRICS
from .format import format_text as format_text
from .load import parse_spec as parse_spec
from .model import Claim as Claim
from .model import Clause as Clause
from .model import PassUse as PassUse
from .model import Spec as Spec
from .overrides import RESERVED as RESERVED
from .overrides import Overrides as Overrides
from .overrides import parse_model as parse_model
from .overrides import parse_override as parse_override
from .overrides import parse_overrides as parse_overrides
from .references import ModelRef as ModelRef

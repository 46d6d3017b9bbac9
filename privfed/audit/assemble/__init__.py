"""From a finished run to its evidence: every figure of the report, each from the object that measured it."""

from privfed.audit.assemble.document import assemble, measurements_of
from privfed.audit.assemble.material import Material

__all__ = ["Material", "assemble", "measurements_of"]

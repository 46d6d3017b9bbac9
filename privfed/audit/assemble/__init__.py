"""From a finished run to its evidence: every figure of the report, each from the object that measured it."""

from privfed.audit.assemble.document import assemble
from privfed.audit.assemble.material import Material
from privfed.audit.assemble.observers import verdict

__all__ = ["Material", "assemble", "verdict"]

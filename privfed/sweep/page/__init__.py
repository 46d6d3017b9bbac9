"""The sweep's page: rendered from ``sweep.json``'s content alone, in the report's style."""

from privfed.sweep.page.render import render_sweep

__all__ = ["render_sweep"]

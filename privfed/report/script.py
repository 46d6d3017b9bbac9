"""The little that a page does by itself: one inline script, allowed by its hash and no other."""

from __future__ import annotations

import base64
import hashlib

from jinja2 import Environment


def script_of(environment: Environment, *names: str) -> str:
    """The templates ``names``, one after the other."""
    return "\n".join(environment.get_template(name).render().strip() for name in names)


def hash_of(script: str) -> str:
    """For the page's Content-Security-Policy."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

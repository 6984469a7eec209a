"""The compatibility layer: programs for the official SDK 1.x run after changing their imports.

Experimental: a minor version can change it. See Stability in the documentation.
"""

from importlib.util import find_spec

from millstream._protocol.errors import MissingExtra

if find_spec("pydantic") is None:
    raise MissingExtra("millstream.compat", "pydantic")

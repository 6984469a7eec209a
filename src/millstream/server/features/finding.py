"""Which resource or template a URI means."""

from collections.abc import Mapping
from typing import Any

from millstream.server.features.registry import Registry
from millstream.server.features.resources import Resource, Template

MAX_URI = 8 * 1024


def find_readable(registry: Registry, uri: str) -> tuple[Resource | Template | None, Mapping[str, Any]]:
    """The resource or template of a URI, and what the URI says for the variables."""
    resource = registry.resources.get(uri)
    if resource is None and len(uri) <= MAX_URI:
        for template in registry.templates.values():
            variables = template.template.match(uri)
            if variables is not None:
                return template, variables
    return resource, {}

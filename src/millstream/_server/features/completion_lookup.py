"""Lookup of registered items by URI or reference."""

from collections.abc import Callable, Mapping
from typing import Any

from millstream._server.features.registry import Registry
from millstream._server.features.resources import Prompt, Resource, Template

MAX_URI = 8 * 1024


def find_readable(
    registry: Registry, uri: str, seen: Callable[[Resource | Template], bool] = lambda item: True
) -> tuple[Resource | Template | None, Mapping[str, Any]]:
    """Return the resource or template for a URI, if visible to the caller, and the values of the template's
    variables.
    """
    resource = registry.resources.get(uri)
    if resource is not None and not seen(resource):
        resource = None
    if resource is None and len(uri) <= MAX_URI:
        for template in registry.templates.values():
            variables = template.template.match(uri)
            if variables is not None and seen(template):
                return template, variables
        if registry.find_resource is not None:
            resource = registry.find_resource(uri)
    return resource, {}


def check_completers(registry: Registry) -> None:
    """Check that every completer has a target.

    Raises:
        ValueError: The prompt, template, or argument of a completer doesn't exist.
    """
    for reference, argument in registry.completers:
        if _completion_target(registry, reference) is None:
            raise ValueError(f"complete({reference!r}, {argument!r}): there is no such prompt or resource template")
        check_argument(registry, reference, argument)


def check_argument(registry: Registry, reference: str, argument: str) -> None:
    """Check that a prompt or template has an argument. An item that isn't registered yet passes.

    Raises:
        ValueError: The argument doesn't exist. The text lists the existing ones.
    """
    item = _completion_target(registry, reference)
    if item is not None and argument not in item.parameters:
        known = ", ".join(map(repr, item.parameters)) or "none"
        raise ValueError(f"complete({reference!r}, {argument!r}): there is no such argument. Use one of {known}")


def _completion_target(registry: Registry, reference: str) -> Prompt | Template | None:
    """Return the prompt or template of a reference, enabled or not."""
    found: tuple[Prompt | Template | None, ...] = (
        registry.prompts.get(reference),
        registry.templates.get(reference),
        registry.disabled["prompts"].get(reference),
        registry.disabled["templates"].get(reference),
    )
    return next((each for each in found if each is not None), None)

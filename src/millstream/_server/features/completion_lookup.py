"""Which registered item a URI or a reference means."""

from collections.abc import Callable, Mapping
from typing import Any

from millstream._server.features.prompts import Prompt
from millstream._server.features.registry import Registry
from millstream._server.features.resources import Resource, Template

MAX_URI = 8 * 1024


def find_readable(
    registry: Registry, uri: str, seen: Callable[[Resource | Template], bool] = lambda item: True
) -> tuple[Resource | Template | None, Mapping[str, Any]]:
    """The resource or template of a URI that its caller sees, and what the URI says for the variables."""
    resource = registry.resources.get(uri)
    if resource is not None and not seen(resource):
        resource = None
    if resource is None and len(uri) <= MAX_URI:
        for template in registry.templates.values():
            variables = template.template.match(uri)
            if variables is not None and seen(template):
                return template, variables
        if registry.unlisted is not None:
            resource = registry.unlisted(uri)
    return resource, {}


def check_completers(registry: Registry) -> None:
    """Make sure that every completer completes something.

    Raises:
        ValueError: naming the completer whose prompt, template or argument there is not.
    """
    for reference, argument in registry.completers:
        if _completion_target(registry, reference) is None:
            raise ValueError(f"complete({reference!r}, {argument!r}): there is no such prompt or resource template")
        check_argument(registry, reference, argument)


def check_argument(registry: Registry, reference: str, argument: str) -> None:
    """Make sure that a prompt or template has an argument; one that is not there yet may get it.

    Raises:
        ValueError: naming the arguments that it has.
    """
    item = _completion_target(registry, reference)
    if item is not None and argument not in item.parameters:
        known = ", ".join(map(repr, item.parameters)) or "none"
        raise ValueError(f"complete({reference!r}, {argument!r}): there is no such argument; there is {known}")


def _completion_target(registry: Registry, reference: str) -> Prompt | Template | None:
    """The prompt or template of a reference, whether it is offered now or not."""
    found: tuple[Prompt | Template | None, ...] = (
        registry.prompts.get(reference),
        registry.templates.get(reference),
        registry.disabled["prompts"].get(reference),
        registry.disabled["templates"].get(reference),
    )
    return next((each for each in found if each is not None), None)

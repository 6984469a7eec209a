"""`typing.override` for Python 3.11, without the 10 ms that importing typing_extensions takes."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

__all__ = ["override"]

if TYPE_CHECKING:
    from typing_extensions import override
else:
    F = TypeVar("F", bound=Callable[..., Any])

    def override(method: F) -> F:
        """Mark a method as an override, so that `make check` fails if only one of the two is renamed."""
        return method

"""Base classes of errors that can be copied to other processes, and of objects that can't be copied."""

from typing import Any, ClassVar, NoReturn, SupportsIndex

from millstream._override import override


class CopyableError(Exception):
    """An error that can be copied and pickled, whatever arguments its class takes: ``class Busy(CopyableError): …``.

    A plain exception is restored by calling its class with `args`. If that fails, `multiprocessing.Pool` waits forever,
    and `ProcessPoolExecutor` is broken from then on.
    """

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return _restore_error, (type(self), self.args), vars(self) or None

    @override
    def __setstate__(self, state: dict[str, Any] | None) -> None:
        vars(self).update(state or {})


def _restore_error(kind: type[CopyableError], args: tuple[Any, ...]) -> CopyableError:
    """Return a copied error. Its attributes are set later."""
    error = kind.__new__(kind, *args)
    error.args = args  # an OSError only sets them in its `__init__`
    return error


class NotCopyable:
    """An object that's tied to a running program, so it can't be copied or pickled: ``class Pool(NotCopyable): …``."""

    __slots__ = ()

    _COPY_ADVICE: ClassVar[str] = "It belongs to a running program. Pass on the values that you need."
    """What to do instead, in one sentence."""

    @override
    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(f"{type(self).__name__} can't be copied or pickled. {self._COPY_ADVICE}")

"""The base class of objects that contain credentials."""

from millstream._override import override


class Confidential:
    """Shows no values in its `repr`, because some are credentials: ``class Account(Confidential, Struct): …``.

    A Struct or dataclass that contains it shows none either. For dataclasses, pass ``repr=False``.
    """

    __slots__ = ()

    @override
    def __repr__(self) -> str:
        return object.__repr__(self)

"""What ends an answer. Each error is one or two sentences that a person can act on.

What goes wrong at a tool isn't here: the model hears of it and goes on.
"""


class AgentError(Exception):
    """The base of everything that an agent raises. ``except AgentError as error: print(error)``"""


class ConfigurationError(AgentError):
    """Something is missing or contradictory: no model, no key, a package that isn't installed.

    Example:
        ``except ConfigurationError as error: sys.exit(str(error))``
    """


class ContextError(AgentError):
    """A resource or prompt that the person named can't be had. ``except ContextError as error: print(error)``"""


class ModelError(AgentError):
    """The model gave no answer.

    Args:
        message: what happened, and what to do.
        temporary: whether the same request may work later.
        retry_after: seconds after which it may, if the API says so.

    Example:
        ``except ModelError as error: print(error)``
    """

    def __init__(self, message: str, *, temporary: bool = False, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.temporary = temporary
        self.retry_after = retry_after


class ModelDenied(ModelError):
    """401 or 403: the key is wrong, or isn't for this model. ``except ModelDenied: ask_for_another_key()``"""


class ModelUnreachable(ModelError):
    """Nobody answers at the URL of the API. ``except ModelUnreachable: check(url)``"""


class ModelRefused(ModelError):
    """The API doesn't take the request: no such model, a conversation that's too long, a picture it can't see.

    Example:
        ``except ModelRefused as error: print(error)``
    """


class ModelLimited(ModelError):
    """Too many requests or tokens for now, or the account is empty. ``except ModelLimited: wait()``"""


class ModelBroken(ModelError):
    """The API failed, or its answer broke off or couldn't be read. ``except ModelBroken: ask_again()``"""

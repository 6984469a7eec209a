"""Errors that end an answer. Each message is one or two sentences that a person can act on.

Errors of tools don't end an answer: the model receives them and continues.
"""


class AgentError(Exception):
    """Base class of the agent's errors. ``except AgentError as error: print(error)``"""


class ConfigurationError(AgentError):
    """The configuration is incomplete or contradictory: no model, no key, a missing package.

    Example:
        ``except ConfigurationError as error: sys.exit(str(error))``
    """


class ContextError(AgentError):
    """A requested resource or prompt isn't available. ``except ContextError as error: print(error)``"""


class ModelError(AgentError):
    """The model gave no answer.

    Args:
        message: what happened, and what to do.
        temporary: whether the same request may succeed later.
        retry_after: seconds to wait before a retry, if the API says so.

    Example:
        ``except ModelError as error: print(error)``
    """

    def __init__(self, message: str, *, temporary: bool = False, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.temporary = temporary
        self.retry_after = retry_after


class ModelDenied(ModelError):
    """The key is wrong, or isn't valid for this model (401 or 403). ``except ModelDenied: ask_for_another_key()``"""


class ModelUnreachable(ModelError):
    """The API's URL doesn't respond. ``except ModelUnreachable: check(url)``"""


class ModelRefused(ModelError):
    """The API rejected the request: an unknown model, a conversation that is too long, an unsupported image.

    Example:
        ``except ModelRefused as error: print(error)``
    """


class ModelLimited(ModelError):
    """A rate limit was reached, or the account has no credit left. ``except ModelLimited: wait()``"""


class ModelBroken(ModelError):
    """The API failed, or its response was incomplete or malformed. ``except ModelBroken: ask_again()``"""

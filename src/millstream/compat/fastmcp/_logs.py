"""`get_logger`, which programs import beside the server."""

import logging


def get_logger(name: str) -> logging.Logger:
    """A logger."""
    return logging.getLogger(name)

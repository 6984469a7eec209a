"""The files of the pages, as a server sends them."""

from millstream._web.pages import asset, pages

__all__ = ["asset", "pages"]

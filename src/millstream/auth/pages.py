"""Sign in to other servers on pages of your own: pages without scripts, and what is stored until the user returns.

A form acts only if `is_same_origin`. `Vault.put_pending` keeps a sign-in under its state, which is valid once, and
`browser_cookie` ties it to the browser that began it. See `millstream.client.oauth` for the sign-in itself.

Example:
    >>> browser, cookie = browser_cookie(request, "__Host-shop", 3600, secure=True)
    >>> await vault.put_pending("shop-pending", pending.state, Login(browser, pending), 600)
    >>> return redirect_page(pending.url, "Continue to example.com", cookie)
"""

from millstream.auth._authorization_server.tickets import Vault, new_state
from millstream.auth._pages import (
    IMAGES,
    browser_cookie,
    continue_page,
    cross_origin_text,
    get_cookie,
    is_at_host,
    is_same_origin,
    not_signed_in_page,
    quote_foreign,
    redirect_page,
    render,
)

__all__ = [
    "IMAGES",
    "Vault",
    "browser_cookie",
    "continue_page",
    "cross_origin_text",
    "get_cookie",
    "is_at_host",
    "is_same_origin",
    "new_state",
    "not_signed_in_page",
    "quote_foreign",
    "redirect_page",
    "render",
]

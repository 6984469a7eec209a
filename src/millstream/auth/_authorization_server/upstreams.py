"""The built-in upstreams, Google, GitHub, and any OpenID provider, and the users who can sign in with them.

An upstream's tokens are discarded after the login, unless the operator lists `token_scopes`. See `ProviderToken`.
"""

import os
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Unpack, cast
from urllib.parse import urlsplit

from msgspec import Struct, structs

from millstream._confidential import Confidential
from millstream._http.client.pool import OutboundError, check_url
from millstream._oauth import authorization_url, code_grant, refresh_grant
from millstream._protocol.json_schema import is_array, is_object, members
from millstream._protocol.jsonrpc import Json
from millstream._server.calls.vault import new_secret
from millstream._server.functions.description import Names
from millstream._suggestions import suggest_keywords
from millstream.auth._authorization_server.config import IssuerOptions, check_options
from millstream.auth._authorization_server.records import CALLBACK, fingerprint
from millstream.auth._authorization_server.server import Issuer, issuer
from millstream.auth._jose import Claims
from millstream.auth._key_file import check_scopes
from millstream.auth._oidc import CodeFlow, access_of, ask, code_of, text
from millstream.auth._provider_token import ProviderUser
from millstream.auth._tokens import several
from millstream.auth.providers import (
    AuthorizationRedirect,
    Callback,
    SignInFailed,
    UpstreamLogin,
    User,
)

EVERYBODY = "*"
_DOMAIN = r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+"
EMAIL = rf"[A-Za-z0-9.!#$%&'*+/=?^_`{{|}}~-]+@{_DOMAIN}|@{_DOMAIN}"
"""Pattern of an e-mail address, or of a domain after ``@``."""

Allow = Names | Mapping[str, Names]
"""Entries of the list, or a mapping of entries to the scopes that their users can grant to clients."""


class Allowlist:
    """The users who can sign in.

    The operator lists them: ``allow=["@example.com"]``, or ``["*"]`` for everyone. An upstream returns verified names,
    such as an e-mail address, its domain, or a login. The first entry that equals one of them applies. Only whole names
    match, without regard to ASCII case.
    """

    def __init__(self, given: Allow, at: str, *, form: str, examples: str) -> None:
        """Parse the list. `at` is the upstream's URL, `form` the pattern of an entry; `examples` is for error messages.

        Raises:
            ValueError: The list is empty, or an entry can't match any user of the upstream.
            TypeError: The list is a string.
        """
        if not given:
            raise ValueError(f"allow must list who can sign in: {examples}.")
        pairs = given if isinstance(given, Mapping) else dict.fromkeys(several("allow", given), ())
        self._entries: dict[str, tuple[tuple[str, ...], float]] = {}
        """Entry -> its scopes, and a hash of the entry, its scopes, and the upstream."""
        for name, scopes in pairs.items():
            if name != EVERYBODY and not re.fullmatch(form, name):
                raise ValueError(f"allow can't contain {name!r}. Valid entries: {examples}.")
            if isinstance(cast("object", scopes), str):
                raise TypeError(f"The scopes of {name!r} must be a list: [{scopes!r}]")
            key, allowed = lower(name), check_scopes(scopes)
            self._entries[key] = allowed, fingerprint(allowed, at, key)
        self.numbers: set[float] = {number for _, number in self._entries.values()}

    def find(self, names: Collection[str], shown: str) -> tuple[tuple[str, ...], float]:
        """Return the scopes and the hash of the first entry that equals one of the names. `shown` is the user's name in
        error messages.

        Raises:
            SignInFailed: No entry matches.
        """
        known = {EVERYBODY, *map(lower, names)}
        for name, entry in self._entries.items():
            if name in known:
                return entry
        raise SignInFailed(f"{shown} can't sign in here. Use another account, or contact this server's operator.")

    def some(self, text: str) -> bool:
        """Return whether any entry contains a text."""
        return any(text in each for each in self._entries)


def lower(name: str) -> str:
    """Return an ASCII name in lower case. Other names are unchanged, because some of their letters would become
    ASCII."""
    return name.lower() if name.isascii() else name


HERE = "https://github.com"
ORGANIZATION = "org:"
"""Prefix of `allow` entries for the members of an organization."""
_TITLE = "GitHub"


class SelectiveUpstream(Confidential, Struct, kw_only=True):
    """An upstream with a list of the users who can sign in."""

    name: str
    label: str
    allowlist: Allowlist

    token_scopes: tuple[str, ...] = ()
    """Scopes of the tokens to keep for tools, or none if they're discarded."""

    def still(self, user: User) -> bool:
        """Return whether the user's `allow` entry still exists, with the same scopes."""
        return user.since in self.allowlist.numbers

    def _person(self, user: User, response: Json) -> User:
        return ProviderUser(**structs.asdict(user), response=response) if self.token_scopes else user


class GitHubUpstream(SelectiveUpstream, kw_only=True):
    """Login with GitHub or a GitHub Enterprise Server.

    GitHub supports OAuth but not OpenID Connect, so its API identifies the user: by the numeric id, which GitHub never
    reuses. Logins can change owners. The access token has the scopes that `allow` needs, and `token_scopes`.
    """

    at: str
    client_id: str
    client_secret: str

    @property
    def _api(self) -> str:
        """Base URL of the API, for github.com, a tenant of ghe.com, or a GitHub Enterprise Server."""
        parts = urlsplit(self.at)
        if self.at == HERE or parts.netloc.endswith(".ghe.com"):
            return f"{parts.scheme}://api.{parts.netloc}"
        return f"{self.at}/api/v3"

    async def begin(self, callback: str, state: str) -> AuthorizationRedirect:
        """Return the redirect to GitHub."""
        verifier = new_secret()
        wanted = {"read:org": self.allowlist.some(ORGANIZATION), "user:email": self.allowlist.some("@")}
        scope = " ".join((*(scope for scope, is_wanted in wanted.items() if is_wanted), *self.token_scopes))
        more = {"scope": scope, "prompt": "select_account"}
        url = authorization_url(f"{self.at}/login/oauth/authorize", self.client_id, callback, state, verifier, more)
        return AuthorizationRedirect(url, verifier.encode())

    async def finish(self, callback: Callback) -> User:
        """Return the user who signed in."""
        code = code_of(callback.query, _TITLE)
        answer = await self._ask_token(code_grant(code, callback.url, callback.state_data.decode()))
        token = text(answer.get("access_token"))
        if not token:
            code_of({"error": text(answer.get("error"))}, _TITLE)
        person = members(await self._ask("/user", token))
        number, login = person.get("id"), text(person.get("login"))
        if not isinstance(number, int) or isinstance(number, bool) or not login:
            raise SignInFailed(f"{_TITLE} didn't identify you. Try again later.")
        allowed = self.allowlist.find({login, *await self._more(token)}, login)
        return self._person(User(str(number), text(person.get("name")) or login, *allowed), answer)

    async def refresh(self, token: str) -> Json:
        """See `CodeFlow.refresh`. Only GitHub Apps issue such tokens."""
        return await self._ask_token(refresh_grant(token))

    async def _ask_token(self, form: Mapping[str, str]) -> Json:
        who = {"client_id": self.client_id, "client_secret": self.client_secret}
        # GitHub also returns errors with status 200.
        return members(await ask(f"{self.at}/login/oauth/access_token", _TITLE, form={**who, **form}, headers={}))

    async def _more(self, token: str) -> set[str]:
        """Return the user's organizations and verified e-mail addresses, if `allow` needs them."""
        found: set[str] = set()
        if self.allowlist.some(ORGANIZATION):
            for each in await self._list("/user/memberships/orgs?state=active&per_page=100", token):
                if each.get("state") == "active" and is_object(each.get("organization")):
                    found.add(ORGANIZATION + text(each["organization"].get("login")))
        if self.allowlist.some("@"):
            for each in await self._list("/user/emails?per_page=100", token):
                if each.get("verified") is True and "@" in (email := text(each.get("email"))):
                    found |= {email, f"@{email.rpartition('@')[2]}"}
        return found

    async def _list(self, path: str, token: str) -> list[Mapping[str, Any]]:
        found = await self._ask(path, token)
        return [each for each in found if is_object(each)] if is_array(found) else []

    async def _ask(self, path: str, token: str) -> Any:
        headers = {"authorization": f"Bearer {token}", "accept": "application/vnd.github+json"}
        return await ask(self._api + path, _TITLE, headers=headers)


_SCOPE = "openid email profile"

NamesOf = Callable[[Claims], frozenset[str]]
"""Returns the verified names in an issuer's claims about a user."""


def verified_names(claims: Claims) -> frozenset[str]:
    """Return the verified e-mail address and its domain, if any."""
    email = text(claims.get("email"))
    # Some issuers send a string. Without the claim, the address may be unverified.
    if "@" not in email or claims.get("email_verified") not in (True, "true"):
        return frozenset()
    return frozenset((email, f"@{email.rpartition('@')[2]}"))


def google_names(claims: Claims) -> frozenset[str]:
    """Return the verified names of a Gmail or managed Google account.

    Anyone can create a Google account with an address of another domain, and keep it after losing that address.
    Therefore the domain is taken from `hd`, the organization that manages the account.
    """
    names = {each for each in verified_names(claims) if not each.startswith("@")}
    if names and (organization := text(claims.get("hd"))):
        return frozenset((*names, f"@{organization}"))
    return frozenset(each for each in names if each.lower().endswith("@gmail.com"))


class OpenIdUpstream(SelectiveUpstream, kw_only=True):
    """Login with one OpenID provider.

    The ID token of the code flow identifies the user. For that, the access token is used only to get claims that
    the ID token lacks from the userinfo endpoint.
    """

    names_of: NamesOf
    flow: CodeFlow

    async def prefetch(self) -> None:
        """See `Prefetchable.prefetch`."""
        await self.flow.prefetch()

    async def begin(self, callback: str, state: str) -> AuthorizationRedirect:
        """Return the redirect to the provider."""
        return await self.flow.begin(callback, state, await self._scope())

    async def _scope(self) -> str:
        """Return the scopes to request. Most providers issue refresh tokens only for ``offline_access``."""
        offered = (await self.flow.metadata()).get("scopes_supported") if self.token_scopes else ()
        offline = ("offline_access",) if is_array(offered) and "offline_access" in offered else ()
        return " ".join(dict.fromkeys((_SCOPE, *self.token_scopes, *offline)))

    async def refresh(self, token: str) -> Json:
        """See `CodeFlow.refresh`."""
        return await self.flow.refresh(token)

    async def begin_anew(self, callback: str, state: str, prompt: str) -> AuthorizationRedirect:
        """See `UpstreamWithPrompt.begin_anew`."""
        return await self.flow.begin(callback, state, await self._scope(), prompt)

    async def finish(self, callback: Callback) -> User:
        """Return the user who signed in."""
        claims, given = await self.flow.finish(callback)
        subject = str(claims["sub"])
        if "email_verified" not in claims and "userinfo_endpoint" in await self.flow.metadata():
            claims = await self.flow.userinfo(access_of(given), subject)
        name, email = text(claims.get("name")), text(claims.get("email"))
        allowed = self.allowlist.find(self.names_of(claims), email or name or subject)
        return self._person(User(subject, name or email or subject, *allowed), given)


_EMAILS = "['ada@example.com'], ['@example.com'] for a whole domain"


class KnownService(Struct, frozen=True):
    """The built-in configuration of a service."""

    title: str
    at: str
    names_of: NamesOf = verified_names
    parameters: Mapping[str, str] = {}
    form: str = EMAIL
    examples: str = f"{_EMAILS}, ['*'] for everyone"


KNOWN = {
    # Otherwise users with several accounts can't switch from one that isn't allowed.
    "google": KnownService(
        "Google",
        "https://accounts.google.com",
        google_names,
        {"prompt": "select_account"},
        examples=f"{_EMAILS}, ['*'] for everyone with a Google account",
    ),
    "github": KnownService(
        "GitHub",
        HERE,
        form=rf"{ORGANIZATION}[A-Za-z0-9_-]{{1,39}}|[A-Za-z0-9_-]{{1,39}}|{EMAIL}",
        examples=f"['octocat'], ['org:example'] for an organization, {_EMAILS}, ['*'] for everyone on GitHub",
    ),
}


_OFFLINE = {"access_type": "offline", "prompt": "consent select_account"}
"""Google issues a refresh token only for offline access, and only once for each consent."""


@suggest_keywords
def login_provider(
    provider: str,
    *,
    allow: Allow,
    client_id: str = "",
    client_secret: str = "",
    name: str = "",
    title: str = "",
    base_url: str = "",
    token_scopes: Names = (),
) -> UpstreamLogin:
    """Return an upstream for `issuer`: users sign in with Google, GitHub, or any OpenID provider.

    Register this server with it as a web application with the redirect URI ``URL/sign-in/callback/NAME``.

    Args:
        provider: ``"google"``, ``"github"``, or the exact issuer identifier: ``"https://login.example.com"``.
        allow: Who can sign in: a verified e-mail address ``"ada@example.com"``, a domain ``"@example.com"``, or ``"*"``
            for everyone with an account there. For GitHub, it can also be a login, ``"octocat"``, or an organization,
            ``"org:example"``. To let users grant scopes to clients, map entries to scopes:
            ``{"@example.com": ["orders:write"]}``. The first matching entry applies.
        client_id: Client id of the registration, by default ``$GOOGLE_CLIENT_ID`` or ``$GITHUB_CLIENT_ID``.
        client_secret: Secret for `client_id`, by default ``$GOOGLE_CLIENT_SECRET`` or ``$GITHUB_CLIENT_SECRET``.
        name: Name in the redirect URI and in subjects, by default ``google``, ``github``, or ``openid``.
        title: Name on the button, by default the issuer's host.
        base_url: Base URL, for a GitHub Enterprise server or a test double of Google.
        token_scopes: Scopes at the provider in which tools act for the user. The user's tokens are then kept, sealed,
            for `provider_token`. By default, they're discarded.

    Raises:
        ValueError: An argument is missing or invalid.

    Example:
        ``users=[auth.users(file="users.json"), auth.login_provider("google", allow=["@example.com"])]``
    """
    known = KNOWN.get(provider)
    if known is None:
        try:
            host = check_url(provider).hostname or ""
        except OutboundError as exc:
            raise ValueError(
                f"{provider!r} isn't an upstream. Use {', '.join(map(repr, KNOWN))}, or an issuer's URL. {exc}"
            ) from None
        known, name = KnownService(title or host, provider), name or "openid"
    name, title, at = name or provider, title or known.title, base_url or known.at
    client_id, client_secret = _credentials(provider, name, client_id, client_secret)
    kept = tuple(several("token_scopes", token_scopes))
    allowlist = Allowlist(allow, at, form=known.form, examples=known.examples)
    url = check_url(at).geturl()
    if provider == "github":
        return GitHubUpstream(
            name=name,
            label=f"Continue with {_TITLE}",
            allowlist=allowlist,
            at=url.rstrip("/"),
            client_id=client_id,
            client_secret=client_secret,
            token_scopes=kept,
        )
    parameters = {**known.parameters, **_OFFLINE} if kept and provider == "google" else known.parameters
    return OpenIdUpstream(
        name=name,
        label=f"Continue with {title}",
        allowlist=allowlist,
        names_of=known.names_of,
        flow=CodeFlow(url, client_id=client_id, client_secret=client_secret, title=title, parameters=parameters),
        token_scopes=kept,
    )


def _credentials(who: str, name: str, client_id: str, client_secret: str) -> tuple[str, str]:
    """Return this server's client id and secret at an upstream; for known services, by default from the environment."""
    said = "pass client_id= and client_secret=, read from the environment"
    if who in KNOWN:
        id_name, secret_name = f"{who.upper()}_CLIENT_ID", f"{who.upper()}_CLIENT_SECRET"
        client_id = client_id or os.environ.get(id_name, "")
        client_secret = client_secret or os.environ.get(secret_name, "")
        said = f"set {id_name} and {secret_name}, or pass client_id= and client_secret="
    if client_id and client_secret:
        return client_id, client_secret
    title = KNOWN[who].title if who in KNOWN else who
    raise ValueError(
        f"Register this server with {title}, using the redirect URI YOUR-SERVER{CALLBACK}{name}. Then {said}."
    )


def google(
    url: str,
    *,
    allow: Allow,
    client_id: str = "",
    client_secret: str = "",
    token_scopes: Names = (),
    **more: Unpack[IssuerOptions],
) -> Issuer:
    """Return an `issuer` where users sign in with Google.

    Args:
        url: The public URL of this server.
        allow: Who can sign in: verified addresses, or ``@example.com`` for everyone with an address there. See
            `login_provider`.
        client_id: Id of the OAuth client that you registered with Google, by default ``$GOOGLE_CLIENT_ID``.
        client_secret: Its secret, by default ``$GOOGLE_CLIENT_SECRET``.
        token_scopes: See `login_provider`.
        more: Options of `issuer`, such as ``scopes``.

    Example:
        ``Server("shop", auth=auth.google("https://mcp.example.com", allow=["@example.com"]))``
    """
    check_options("auth.google", more)
    login = login_provider(
        "google", allow=allow, client_id=client_id, client_secret=client_secret, token_scopes=token_scopes
    )
    return issuer(url, users=login, **more)


def github(
    url: str,
    *,
    allow: Allow,
    client_id: str = "",
    client_secret: str = "",
    token_scopes: Names = (),
    **more: Unpack[IssuerOptions],
) -> Issuer:
    """Return an `issuer` where users sign in with GitHub.

    Args:
        url: The public URL of this server.
        allow: Who can sign in: a login, an organization as ``org:example``, or a verified address. See
            `login_provider`.
        client_id: Id of the OAuth application that you registered with GitHub, by default ``$GITHUB_CLIENT_ID``.
        client_secret: Its secret, by default ``$GITHUB_CLIENT_SECRET``.
        token_scopes: See `login_provider`.
        more: Options of `issuer`, such as ``scopes``.

    Example:
        ``Server("shop", auth=auth.github("https://mcp.example.com", allow=["octocat"]))``
    """
    check_options("auth.github", more)
    login = login_provider(
        "github", allow=allow, client_id=client_id, client_secret=client_secret, token_scopes=token_scopes
    )
    return issuer(url, users=login, **more)

import os
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from identity_world import Identity, identity
from pages_world import OpenPage, find_overflow, run_axe
from processes import TEST_PATH, free_port, run_command, run_server

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Identity]:
    """The provider that stands in for Google, and is an issuer of its own, too."""
    with identity(tmp_path_factory.mktemp("identity")) as running:
        yield running


@pytest.fixture(scope="module")
def shop(provider: Identity, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`elsewhere_shop.py`: people come by Google, or by an issuer whose tokens count here."""
    port = free_port()
    url = f"http://localhost:{port}"
    # The provider is at 127.0.0.1, so that it's another site than the shop, as Google is.
    google, secret = provider.register(f"{url}/sign-in/callback/google")
    desk, password = provider.register(f"{url}/sign-in/callback/oidc")
    known = {"SHOP_URL": url, "PROVIDER_URL": provider.url, "GOOGLE_CLIENT_ID": google, "GOOGLE_CLIENT_SECRET": secret,
             "DESK_CLIENT_ID": desk, "DESK_CLIENT_SECRET": password,
             "PYTHONPATH": os.pathsep.join([TEST_PATH, os.environ.get("PYTHONPATH", "")])}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in known.items():
            patch.setenv(name, value)
        with run_server(
            run_command("tests/pages/elsewhere_shop.py", port), port, tmp_path_factory.mktemp("shop") / "log"
        ):
            yield url


def sign_in_there(page: Page, login: str) -> None:
    """The pages of oidc-provider: a name, any password, and agreeing."""
    page.locator('input[name="login"]').fill(login)
    page.locator('input[name="password"]').fill("any")
    page.get_by_role("button", name="Sign-in").click()
    page.get_by_role("button", name="Continue").click()


@pytest.mark.parametrize(
    ("button", "who"), [("Google", "google:ada@example.com"), ("127.0.0.1", "ada@example.com")], ids=["google", "oidc"]
)
def test_pages_open_with_an_external_account(shop: str, open_page: OpenPage, button: str, who: str) -> None:
    page = open_page(f"{shop}/docs", lossy=True, width=320, java_script_enabled=True)
    assert run_axe(page) == []
    assert find_overflow(page) == []
    page.get_by_role("button", name=f"Continue with {button}").click()
    sign_in_there(page, "ada@example.com")
    page.wait_for_url(f"{shop}/docs")
    expect(page.get_by_role("heading", level=1)).not_to_contain_text("Sign in to")
    kept = {each["name"]: each for each in page.context.cookies(shop)}
    assert (kept["millstream"]["sameSite"], kept["millstream"]["httpOnly"]) == ("Strict", True)
    said = page.evaluate(
        "async () => (await fetch('/tools/who', {method: 'POST', body: '{}', "
        "headers: {'content-type': 'application/json'}})).text()"
    )
    assert f'"{who}"' in said
    page.goto(f"{shop}/chat")
    expect(page.get_by_role("button", name=re.compile("Continue with"))).to_have_count(0)


def test_users_missing_from_the_allowlist_see_the_reason(shop: str, open_page: OpenPage) -> None:
    page = open_page(f"{shop}/chat", lossy=True)
    page.get_by_role("button", name="Continue with Google").click()
    sign_in_there(page, "mallory@example.com")
    expect(page.get_by_role("alert")).to_have_text(re.compile("mallory@example.com can't sign in here"))
    assert [each["name"] for each in page.context.cookies(shop) if each["name"] == "millstream"] == []
    expect(page.get_by_role("button", name="Continue with Google")).to_be_visible()

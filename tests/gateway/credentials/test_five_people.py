"""A gateway for five people, configured only by its file: with passwords, a key, an issuer, and personal accounts."""

import asyncio
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from account_parts import KeyFile
from auth.issuing.test_official_client import Program, text
from command_line import run_in_process
from gateway.accounts import Browser, run_world
from issuer_world import claims, run_issuer, token
from millstream import Client
from patience import WAIT
from processes import ROOT, free_port, run_server

pytestmark = pytest.mark.server

FILE = """
store = "sqlite:///{folder}/gateway.db"

[auth.issuer]
url = "{url}"
users = "users.json"
scope_descriptions = {{ "orders:write" = "order books" }}

[auth.keys]
file = "keys.json"

[auth.oidc]
issuer = "{issuer}"
audience = "{url}/mcp"

[policy.tools."shop_order*"]
scopes = ["orders:write"]

[policy.tools."*_report"]
groups = ["finance"]

[upstreams.shop]
command = ["{python}", "{shop}"]

[upstreams.notes]
url = "{notes}"
auth = {{ kind = "per_user_oauth" }}
"""
PASSWORDS = {"ada": ["--scope=orders:write", "--group=finance"], "bob": [], "cleo": []}
"""People with an account of the gateway. Dan has a key, and Eve comes from the issuer."""
WRITERS = {"ada", "eve"}


async def use(person: str, how: Program | str, url: str) -> tuple[str, set[str], str]:
    """Return a person's account at the upstream, the tools that they see, and the reply to an order."""
    order = {"isbn": "7", "account": person}
    if isinstance(how, Program):
        async with how.connected() as client:
            names = {each.name for each in (await client.list_tools()).tools}
            whose = text(await client.call_tool("notes_who", {}))
            bought = text(await client.call_tool("shop_order", order)) if person in WRITERS else ""
            return whose, names, bought
    async with Client(f"{url}/mcp", headers={"authorization": f"Bearer {how}"}, timeout=WAIT) as client:
        names = {each.name for each in await client.tools()}
        bought = (await client.call("shop_order", **order)).text if person in WRITERS else ""
        return (await client.call("notes_who")).text, names, bought


async def test_five_people_use_their_own_accounts_even_after_a_restart_with_two_workers(tmp_path: Path) -> None:
    port = free_port()
    url, file, users = f"http://127.0.0.1:{port}", tmp_path / "gateway.toml", str(tmp_path / "users.json")
    for name, options in PASSWORDS.items():
        added = run_in_process("users", "add", name, *options, "--file", users, input="correct horse\n")
        assert added.exit_code == 0, added.stderr
    people: dict[str, Program | str] = {name: Program(url, person=name) for name in PASSWORDS}
    people["dan"] = KeyFile(tmp_path / "keys.json").add("dan", (), 0, None)
    command = [sys.executable, "-m", "millstream", "gateway", str(file), "--serve", "web", "--port", str(port)]
    async with run_issuer() as issuer, run_world() as notes:
        people["eve"] = token(claims(iss=issuer.url, aud=f"{url}/mcp", sub="eve", exp=4e9))
        shop = ROOT / "examples" / "gateway" / "shop.py"
        file.write_text(
            FILE.format(folder=tmp_path, url=url, issuer=issuer.url, python=sys.executable, shop=shop, notes=notes.url),
            "utf-8",
        )
        for step, more in enumerate(([], ["--workers", "2"])):
            with ExitStack() as stack:
                start = run_server([*command, *more], port, tmp_path / "log", MILLSTREAM_SECRET_KEY="s" * 40)
                await asyncio.to_thread(stack.enter_context, start)
                if step == 0:
                    for name, how in people.items():
                        async with Browser(url) as browser:
                            await (
                                browser.sign_in("correct horse", name)
                                if isinstance(how, Program)
                                else browser.sign_in(how)
                            )
                            await browser.connect(notes.accounts, name, "notes")
                found = await asyncio.gather(*(use(name, how, url) for name, how in people.items()))
            for name, (account, names, bought) in zip(people, found, strict=True):
                assert account == name
                assert ("shop_order" in names, bought.startswith("Ordered 7")) == (name in WRITERS,) * 2, name
                assert ("shop_report" in names) == (name == "ada"), name
        assert [how.person.visits for how in people.values() if isinstance(how, Program)] == [1, 1, 1]

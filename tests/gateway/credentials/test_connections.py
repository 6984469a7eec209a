"""Per-user accounts of upstreams: which credentials calls use, and how attacks fail.

The rules are those of RFCs 6749, 7009, 7636, 8707, 9207, and 9728.
"""

import asyncio
import json
import logging
import re
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest

from auth.issuing.test_sign_in_end_to_end import Person, serving
from cases import for_each
from client.misbehaving_servers import ReceivedRequest, misbehaving
from fleet import until
from gateway.accounts import ALICE, BOB, Browser, Gateway, reject_tokens, run_gateway, run_scenario, run_world
from issuer_world import run_issuer
from millstream import Server, auth
from millstream._gateway.credentials.source import outbound_for
from millstream._http.client import ConnectFailed
from millstream._http.client.url import parse_url
from millstream._protocol.errors import LocalError
from millstream.client import Options
from millstream.client._oauth.endpoints import fetch
from millstream.client._questions import Question
from millstream.gateway import per_user_oauth
from patience import WAIT
from redis_parts import RedisServer, shared_servers


async def test_calls_use_the_users_account() -> None:
    async with run_scenario() as (other, gate, alice, bob):
        await (await alice.sign_in(ALICE)).connect(other.accounts, "ada")
        await gate.wait_for_tool("up_who")
        assert await gate.call(ALICE, "up_who") == "ada"
        page = f"{gate.base}/connections"
        said = await gate.call(BOB, "up_who")
        assert said == f"The server 'up' requires your own account. Open {page} and connect it. Then call again."
        await (await bob.sign_in(BOB)).connect(other.accounts, "brian")
        for revision in ("2025-06-18", "2026-07-28"):
            async with gate.client(ALICE, revision=revision) as one, gate.client(BOB, revision=revision) as two:
                for _ in range(3):
                    assert [(await each.call("up_who")).text for each in (one, two)] == ["ada", "brian"]
        assert {each["grant_type"] for each in other.accounts.forms} == {"authorization_code"}
        assert len(other.accounts.registered) == 1


async def test_log_shows_where_to_connect_the_first_account(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "millstream.gateway")
    async with run_scenario():
        assert "The upstream up offers nothing until a user connects an account at /connections" in caplog.text


async def test_gateway_without_other_pages_serves_the_styles_and_links_to_no_page() -> None:
    async with run_scenario() as (_, _, alice, _):
        assert (await alice.http.get("/dashboard")).status_code == 404
        page = await alice.page()
        assert 'action="/sign-in"' in page
        sheets = re.findall(r'<link rel="stylesheet" href="([^"]+)"', page)
        assert sheets
        for path in sheets:
            reply = await alice.http.get(path)
            assert (reply.status_code, reply.headers["content-type"]) == (200, "text/css; charset=utf-8"), path
        await alice.sign_in(ALICE)
        assert "<nav" not in await alice.page()


@pytest.mark.parametrize("revision", ["2025-11-25", "2026-07-28"])
async def test_call_continues_after_its_user_connects(revision: str) -> None:
    async with run_scenario() as (other, gate, alice, bob):
        await (await alice.sign_in(ALICE)).connect(other.accounts, "ada")
        await bob.sign_in(BOB)
        await gate.wait_for_tool("up_who")
        asked: list[Question] = []

        async def elicit(question: Question) -> bool:
            asked.append(question)
            await bob.connect(other.accounts, "brian")
            return True

        async with gate.client(BOB, revision=revision, elicit=elicit) as client:
            assert (await client.call("up_who")).text == "brian"
            assert (await client.call("up_who")).text == "brian"
        assert [(each.mode, each.url) for each in asked] == [("url", f"{gate.base}/connections")]


async def test_upstream_can_be_its_own_authorization_server() -> None:
    async with serving(scopes=["shop:use"]) as url, run_gateway(f"{url}/mcp") as gate, Browser(gate.base) as alice:
        await alice.sign_in(ALICE)
        back = await Person().visit(await alice.begin_login())
        assert back.startswith(f"{gate.base}/connections/callback?")
        reply = await alice.finish(await alice.open_callback(dict(parse_qsl(urlsplit(back).query))))
        assert reply.status_code == 303, reply.text
        await gate.wait_for_tool("up_who")
        assert await gate.call(ALICE, "up_who") == "ada shop:use"
        assert (await alice.submit("disconnect")).status_code == 303
        assert "requires your own account" in await gate.call(ALICE, "up_who")


async def test_declining_explains_how_to_connect_later() -> None:
    async with run_world() as other, run_gateway(other.url) as gate, Browser(gate.base) as alice:
        await (await alice.sign_in(ALICE)).connect(other.accounts, "ada")
        await gate.wait_for_tool("up_who")
        async with gate.client(BOB, elicit=lambda question: False) as client:
            assert "You haven't connected it" in (await client.call("up_who", raise_on_error=False)).text


async def test_call_continues_after_a_step_up() -> None:
    async with run_scenario() as (other, gate, alice, bob):
        await (await bob.sign_in(BOB)).connect(other.accounts, "brian")
        await gate.wait_for_tool("up_write")
        await (await alice.sign_in(ALICE)).connect(other.accounts, "ada", scope="books:read")
        scopes: list[str] = []

        async def elicit(question: Question) -> bool:
            url = await alice.begin_login()
            scopes.append(parse_qs(urlsplit(url).query)["scope"][0])
            await alice.finish(await alice.open_callback(other.accounts.authorize(url, "ada")))
            return True

        assert "requires more permissions" in await gate.call(ALICE, "up_write")
        async with gate.client(ALICE, elicit=elicit) as client:
            assert (await client.call("up_write")).text == "written"
        assert scopes == ["books:read books:write"]


async def test_personal_connections_require_authentication() -> None:
    async with run_world() as other:
        mcp = Server("open")
        mcp.upstream("up", other.url, auth=per_user_oauth())
        with pytest.raises(LocalError, match="this server has no auth"):
            await mcp.start()


# Tokens


async def test_expired_tokens_are_refreshed_once_for_all_calls() -> None:
    async with run_scenario() as (other, gate, alice, bob):
        accounts = other.accounts
        await (await alice.sign_in(ALICE)).connect(accounts, "ada")
        await gate.wait_for_tool("up_who")
        accounts.expires_in = 0.001
        await (await bob.sign_in(BOB)).connect(accounts, "brian")
        accounts.expires_in = 600
        accounts.forms.clear()
        arrived, free = asyncio.Event(), asyncio.Event()
        token = accounts.token

        async def slowly(asked: ReceivedRequest) -> None:
            arrived.set()
            await free.wait()
            await token(asked)

        accounts.token = slowly  # type: ignore[method-assign]
        async with gate.client(BOB) as client:
            first = asyncio.create_task(client.call("up_who"))
            await arrived.wait()
            first.cancel()
            await asyncio.wait([first])
            calls = [asyncio.create_task(client.call("up_who")) for _ in range(8)]
            free.set()
            assert {(await each).text for each in calls} == {"brian"}
        assert [each["grant_type"] for each in accounts.forms] == ["refresh_token"]


@for_each("fails", ["", "temporarily_unavailable", "server_error"])
async def test_authorization_server_outage_keeps_connections(fails: str) -> None:
    async with run_scenario() as (other, gate, alice, bob):
        await (await alice.sign_in(ALICE)).connect(other.accounts, "ada")
        await gate.wait_for_tool("up_who")
        other.accounts.expires_in = 0.001
        await (await bob.sign_in(BOB)).connect(other.accounts, "brian")
        other.accounts.expires_in = 600
        other.accounts.fails = fails
        if not fails:
            other.accounts.metadata_changes = {"token_endpoint": "http://127.0.0.1:9/token"}
        for _ in range(8):
            text = await gate.call(BOB, "up_who")
            assert "credentials that its authorization server doesn't issue" in text
            assert "/connections" not in text
        assert await gate.call(ALICE, "up_who") == "ada"
        other.accounts.fails, other.accounts.metadata_changes = "", {}
        assert await gate.call(BOB, "up_who") == "brian"
        assert (await bob.submit("disconnect")).status_code == (await alice.submit("disconnect")).status_code == 303
        assert (await gate.mcp.start()).host.degraded_reasons() == []


async def test_rejected_tokens_are_refreshed_once() -> None:
    async with run_scenario() as (other, gate, alice, bob):
        accounts = other.accounts
        await (await alice.sign_in(ALICE)).connect(accounts, "ada")
        await gate.wait_for_tool("up_who")
        async with reject_tokens(other.mcp):
            assert "no longer accepts your connection" in await gate.call(ALICE, "up_who")
        refreshed = [each for each in accounts.forms if each["grant_type"] == "refresh_token"]
        assert [each["resource"] for each in refreshed] == [other.url]
        await (await bob.sign_in(BOB)).connect(accounts, "brian")
        accounts.refresh.clear()
        async with reject_tokens(other.mcp):
            for words in ("no longer accepts your connection", "requires your own account"):
                assert words in await gate.call(BOB, "up_who")


async def test_account_that_ended_is_reported_over_websockets() -> None:
    async with run_world(path="/ws") as other:
        url = other.url.replace("http:", "ws:")
        async with run_gateway(url) as gate, Browser(gate.base) as alice, Browser(gate.base) as bob:
            await (await alice.sign_in(ALICE)).connect(other.accounts, "ada")
            await gate.wait_for_tool("up_who")
            other.accounts.expires_in = 0.001
            await (await bob.sign_in(BOB)).connect(other.accounts, "brian")
            other.accounts.refresh.clear()
            for words in ("no longer accepts your connection", "requires your own account"):
                assert words in await gate.call(BOB, "up_who")
            assert await gate.call(ALICE, "up_who") == "ada"


async def test_session_that_could_not_be_opened_is_not_reported_as_lost() -> None:
    async with run_world(path="/ws") as other:
        accounts, url = other.accounts, other.url.replace("http:", "ws:")
        async with run_gateway(url) as gate, Browser(gate.base) as alice, Browser(gate.base) as bob:
            await (await alice.sign_in(ALICE)).connect(accounts, "ada")
            await gate.wait_for_tool("up_who")
            accounts.expires_in = 0.001
            await (await bob.sign_in(BOB)).connect(accounts, "brian")
            accounts.refresh.clear()
            accounts.expires_in = 600
            async with gate.client(BOB, revision="2025-11-25") as client:
                text = (await client.call("up_who", raise_on_error=False)).text
                assert "no longer accepts your connection" in text
                await bob.connect(accounts, "brian")
                assert (await client.call("up_who")).text == "brian"


@pytest.mark.server
async def test_failing_account_does_not_hide_the_upstream_from_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    redis = shared_servers(RedisServer)
    redis.flush()
    async with run_world() as other, run_gateway(other.url, store=redis.url) as one, Browser(one.base) as alice:
        accounts, issue = other.accounts, other.accounts.issue
        monkeypatch.setattr(
            accounts, "issue", lambda person, scope: "refused" if person == "mallory" else issue(person, scope)
        )
        async with Browser(one.base) as bob:
            await (await bob.sign_in(BOB)).connect(accounts, "mallory")
        await (await alice.sign_in(ALICE)).connect(accounts, "ada")
        await one.wait_for_tool("up_who")
        stored_lists = redis.ask("KEYS", "*catalog:*")
        redis.ask("DEL", *stored_lists)  # otherwise the second gateway shows the first one's lists
        async with run_gateway(other.url, store=redis.url) as two:  # the lister is the first account
            await two.wait_for_tool("up_who")
            assert "can't read the lists" in caplog.text
            assert await two.call(ALICE, "up_who") == "ada"
            assert (await two.mcp.start()).host.degraded_reasons() == []


async def test_personal_resources_are_not_listed_for_others() -> None:
    async with run_world() as other, run_gateway(other.url) as gate, Browser(gate.base) as alice:
        other.mcp.resource("note://ada/1", name="note")(lambda: "private")
        await (await alice.sign_in(ALICE)).connect(other.accounts, "ada")
        await gate.wait_for_tool("up_who")
        async with gate.client(BOB) as client:
            assert not await client.resources()
        async with gate.client(ALICE) as client:
            assert (await client.read("note://up/ada/1"))[0].text == "private"


@pytest.mark.server
async def test_workers_share_connections_and_refreshes() -> None:
    redis = shared_servers(RedisServer)
    redis.flush()
    async with (
        run_world() as other,
        run_gateway(other.url, store=redis.url) as one,
        run_gateway(other.url, store=redis.url) as two,
        Browser(one.base) as alice,
        Browser(one.base) as bob,
    ):
        accounts = other.accounts
        await (await alice.sign_in(ALICE)).connect(accounts, "ada")
        accounts.expires_in = 0.001
        await (await bob.sign_in(BOB)).connect(accounts, "brian")
        accounts.expires_in = 600
        for gate in (one, two):
            await gate.wait_for_tool("up_who")
        accounts.forms.clear()
        said = await asyncio.gather(*(gate.call(BOB, "up_who") for gate in (one, two) * 4))
        assert set(said) == {"brian"}
        assert [each["grant_type"] for each in accounts.forms] == ["refresh_token"]
        refresh = next(iter({name for name, (person, _) in accounts.refresh.items() if person == "brian"}))
        reply = await bob.submit("disconnect")
        assert (reply.status_code, refresh in accounts.revoked) == (303, True)
        for gate in (one, two):
            async with asyncio.timeout(WAIT):
                while "requires your own account" not in await gate.call(BOB, "up_who"):
                    pass  # the message between workers takes a moment
            assert await gate.call(ALICE, "up_who") == "ada"
        keys, values = await stored_values(one)
    assert any(key.startswith("connection:") for key in keys)
    said_there = b"".join(values)
    assert not any(each.encode() in said_there for each in (*accounts.refresh, "eyJhb", "registered", '"ada"'))


async def stored_values(gate: Gateway) -> tuple[list[str], list[bytes]]:
    """Return the values about connections in a gateway's store."""
    kv = (await gate.mcp.start()).store.kv
    keys = [each for kind in ("connection", "gateway") for each in await kv.keys(f"{kind}-")]
    keys += await kv.keys("connection:")
    return keys, [await kv.get(key) or b"" for key in keys]


# Lists


async def tools_for(gate: Gateway, key: str) -> set[str]:
    """Return the names of the tools that a caller sees."""
    async with gate.client(key, options=Options(cache=False)) as client:
        return {each.name for each in await client.tools()}


async def test_newer_account_does_not_change_what_others_see(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/gateway.db"
    async with run_world() as other:
        async with run_gateway(other.url, store=store) as gate, Browser(gate.base) as alice, Browser(gate.base) as bob:
            await (await alice.sign_in(ALICE)).connect(other.accounts, "ada", scope="books:write")
            await gate.wait_for_tool("up_write")
            await (await bob.sign_in(BOB)).connect(other.accounts, "brian", scope="books:read")
            await alice.connect(other.accounts, "ada", scope="books:write")  # again
        other.mcp.tool(name="new")(lambda: "")
        async with run_gateway(other.url, store=store) as gate, Browser(gate.base) as alice:
            await gate.wait_for_tool("up_new")  # the lists have been read again
            assert "up_write" in await tools_for(gate, ALICE)
            await (await alice.sign_in(ALICE)).submit("disconnect")
        other.mcp.tool(name="newest")(lambda: "")
        async with run_gateway(other.url, store=store) as gate:
            await gate.wait_for_tool("up_newest")
            assert "up_write" not in await tools_for(gate, ALICE)  # the next account reads them


async def test_lists_are_read_with_the_account_that_the_operator_chose(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "millstream.gateway")
    async with (
        run_world() as other,
        run_gateway(other.url, auth=per_user_oauth(lists_from="alice"), start_timeout=0.1) as gate,
        Browser(gate.base) as alice,
        Browser(gate.base) as bob,
    ):
        await (await bob.sign_in(BOB)).connect(other.accounts, "brian", scope="books:read")
        assert await tools_for(gate, BOB) == set()
        assert "The upstream up offers nothing until alice connects an account at /connections" in caplog.text
        await (await alice.sign_in(ALICE)).connect(other.accounts, "ada", scope="books:write")
        await gate.wait_for_tool("up_write", BOB)
        assert await gate.call(BOB, "up_who") == "brian"
        await alice.submit("disconnect")
        assert "up_write" in await tools_for(gate, BOB)
        assert re.findall("The upstream up is ready: .*", caplog.text) == ["The upstream up is ready: 2 tools"]


# Attacks


async def test_connection_callbacks_are_bound_and_single_use() -> None:
    async with run_scenario() as (other, _, alice, bob):
        accounts = other.accounts
        await alice.sign_in(ALICE)
        await bob.sign_in(BOB)
        await bob.begin_login()
        # Bob's browser delivers the answer to Alice's request: login CSRF (RFC 6749 §10.12).
        answer = accounts.authorize(await alice.begin_login(), "ada")
        assert (await bob.finish(await bob.open_callback(answer))).status_code == 403
        assert (await alice.finish(await alice.open_callback(answer))).status_code == 403
        # The browser is Alice's, but Bob has signed in to it since.
        answer = accounts.authorize(await alice.begin_login(), "ada")
        back = await alice.open_callback(answer)
        cookie = alice.http.cookies["millstream"]
        await alice.sign_in(BOB)
        assert (await alice.finish(back)).status_code == 403
        alice.http.cookies.set("millstream", cookie, domain="127.0.0.1", path="/")
        # Bob opens the page with Alice's answer.
        back = await alice.open_callback(accounts.authorize(await alice.begin_login(), "ada"))
        assert (await bob.finish(back)).status_code == 403
        # Forged, without an issuer, or from another issuer (RFC 9207 §2.4).
        answer = {"code": "c", "state": "x" * 32, "iss": accounts.url}
        assert (await alice.finish(await alice.open_callback(answer))).status_code == 403
        for changes in ({"iss": "https://evil.example"}, {"iss": ""}):
            answer = {**accounts.authorize(await alice.begin_login(), "ada"), **changes}
            assert (await alice.finish(await alice.open_callback(answer))).status_code == 403
        assert accounts.forms == []
        assert "Not connected" in await alice.page()


async def test_declined_or_forged_redirects_keep_every_users_registration() -> None:
    async with run_scenario() as (other, _, alice, bob):
        accounts = other.accounts
        await bob.sign_in(BOB)
        for answer in ({"error": "access_denied"}, {"error": "unauthorized_client"}, {"code": "made up"}):
            state = parse_qs(urlsplit(await bob.begin_login()).query)["state"][0]
            back = await bob.open_callback({**answer, "state": state, "iss": accounts.url})
            assert (await bob.finish(back)).status_code == 403
        await (await alice.sign_in(ALICE)).connect(accounts, "ada")
        assert len(accounts.registered) == 1


async def test_forgotten_client_is_registered_again_and_no_list_waits_for_an_account(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with (
        run_world() as other,
        run_gateway(other.url, start_timeout=10 * WAIT) as gate,
        Browser(gate.base) as alice,
        Browser(gate.base) as bob,
    ):
        accounts = other.accounts
        await (await alice.sign_in(ALICE)).connect(accounts, "ada")
        await (await bob.sign_in(BOB)).connect(accounts, "brian")
        await gate.wait_for_tool("up_who")
        host = (await gate.mcp.start()).host
        accounts.forgotten.add("registered")
        async with reject_tokens(other.mcp):
            for key in (ALICE, BOB):
                while "requires your own account" not in (said := await gate.call(key, "up_who")):
                    assert "no longer accepts your connection" in said
        async with asyncio.timeout(WAIT):
            for _ in range(2):
                assert "up_who" in await tools_for(gate, BOB)
            await until(lambda: "because 2 of them ended" in host.gateway.describe()[0]["reason"])
        assert len(host.degraded_reasons()) == 1
        assert caplog.text.count("has forgotten this gateway, which registers again") == 1
        await alice.connect(accounts, "ada")
        assert len(accounts.registered) == 2
        assert await gate.call(ALICE, "up_who") == "ada"
        async with asyncio.timeout(WAIT):
            await until(lambda: not host.degraded_reasons())


async def test_login_that_never_came_back_is_begun_with_another_registration() -> None:
    async with run_scenario() as (other, _, alice, _):
        await alice.sign_in(ALICE)
        dead = parse_qs(urlsplit(await alice.begin_login()).query)["client_id"]
        await alice.connect(other.accounts, "ada")
        assert (dead, len(other.accounts.registered)) == (["registered"], 2)


async def test_rejection_of_a_configured_client_names_the_operator() -> None:
    async with run_world() as other:
        accounts = other.accounts
        options = per_user_oauth(client_id="gw", client_secret="s3cret", issuer=accounts.url)
        async with run_gateway(other.url, auth=options) as gate, Browser(gate.base) as alice:
            await (await alice.sign_in(ALICE)).connect(accounts, "ada")
            await gate.wait_for_tool("up_who")
            secrets = dict(accounts.secrets)
            accounts.secrets.clear()
            async with reject_tokens(other.mcp):
                assert "Its operator has to correct the client_id" in await gate.call(ALICE, "up_who")
            accounts.secrets |= secrets
            assert await gate.call(ALICE, "up_who") == "ada"
            assert accounts.registered == []


async def test_logins_without_exactly_one_code_are_not_finished() -> None:
    async with run_scenario() as (other, _, alice, _):
        await alice.sign_in(ALICE)
        for more in ("", "&code=a&code=b"):
            state = parse_qs(urlsplit(await alice.begin_login()).query)["state"][0]
            reply = await alice.http.get(f"/connections?state={state}{more}")
            assert (reply.status_code, "up isn't connected" in unescape(reply.text)) == (403, True)
            reply = await alice.http.get(f"/connections?state={state}&code=c")
            assert (reply.status_code, "was already finished" in reply.text) == (403, True)
        assert other.accounts.forms == []


async def test_answers_in_the_callback_cannot_change_its_page() -> None:
    async with run_scenario() as (_, _, alice, _):
        back = await alice.open_callback({"state": '1;url=//evil.example"><b>', "code": "a&b\r\nx"})
        found = re.search(r'http-equiv="refresh" content="([^"]+)"', back.text)
        assert found
        escaped = "/connections?state=1%3Burl%3D%2F%2Fevil.example%22%3E%3Cb%3E&code=a%26b%0D%0Ax"
        assert (unescape(found[1]), "<b>" in back.text) == (f"0;url={escaped}", False)


async def test_client_metadata_is_public() -> None:
    async with run_issuer() as issuer, run_world() as other:
        methods = [auth.oidc(issuer.url, audience="https://gateway.example/mcp"), auth.keys(ALICE)]
        other.accounts.metadata_changes = {"client_id_metadata_document_supported": True}
        async with run_gateway(other.url, methods=methods) as gate, Browser(gate.base) as alice:
            reply = await alice.http.get("/connections/client.json")
            about = reply.json()
            assert (reply.status_code, about["client_id"]) == (200, "https://gateway.example/connections/client.json")
            assert about["redirect_uris"] == ["https://gateway.example/connections/callback"]
            assert about["token_endpoint_auth_method"] == "none"
            # Only the configured address is registered, so the browser has to be there.
            await alice.sign_in(ALICE)
            refused = await alice.submit("connect")
            assert refused.status_code == 400
            assert "at https://gateway.example/connections. Open that address." in refused.text


async def test_connections_page_is_linked_from_the_gateway_page() -> None:
    async with (
        run_world() as other,
        run_gateway(other.url, pages="web", methods=auth.keys(ALICE)) as gate,
        Browser(gate.base) as alice,
    ):
        await (await alice.sign_in(ALICE)).connect(other.accounts, "ada")
        reply = await alice.http.get("/gateway", headers={"accept": "text/html"})
        assert (reply.status_code, 'href="connections"' in reply.text) == (200, True)
        await gate.wait_for_tool("up_who")
        page = await alice.page()
        for text in ("Offers here", "tool", 'href="/gateway"', 'href="/connect"'):
            assert text in page
        await alice.submit("disconnect")
        assert "Offers here" not in await alice.page()


async def test_cross_site_forms_are_rejected() -> None:
    async with run_world() as other, run_gateway(other.url) as gate, Browser(gate.base) as alice:
        await (await alice.sign_in(ALICE)).connect(other.accounts, "ada")
        for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
            assert (await alice.submit("disconnect", **headers)).status_code in (401, 403)
        for upstream, action in (("down", "connect"), ("up", "delete")):
            assert (await alice.submit(action, upstream)).status_code == 400
        assert "Connected" in await alice.page()
        async with Browser(gate.base) as stranger:
            assert "Sign in to gateway" in await stranger.page()
            assert (await stranger.submit("connect")).status_code == 401


async def test_metadata_with_foreign_or_private_urls_is_rejected() -> None:
    async with run_world() as other:
        met: list[ReceivedRequest] = []

        async def answer(asked: ReceivedRequest) -> None:
            met.append(asked)
            more = f'WWW-Authenticate: Bearer resource_metadata="{about}"\r\n'
            if asked.path.startswith("/.well-known/"):
                await asked.reply(json.dumps(metadata).encode())
            else:
                await asked.reply(b"", status="401 Unauthorized", more=more)

        async with misbehaving(answer) as evil, run_gateway(evil.url) as gate, Browser(gate.base) as alice:
            await alice.sign_in(ALICE)
            about = other.url.replace("/mcp", "/.well-known/oauth-protected-resource/mcp")
            metadata: dict[str, Any] = {}
            reply = await alice.submit("connect")
            assert (reply.status_code, "describes another server" in reply.text) == (502, True)
            about = evil.url.replace("/mcp", "/.well-known/oauth-protected-resource/mcp")
            metadata = {"resource": other.url, "authorization_servers": [other.accounts.url]}
            assert (await alice.submit("connect")).status_code == 502
        assert other.accounts.forms == other.accounts.registered == []
        outbound = outbound_for(parse_url("https://mcp.example.com/mcp"), private_addresses=False)
        with pytest.raises(ConnectFailed, match="isn't on the public Internet"):
            await fetch("GET", other.accounts.url, outbound=outbound)


@for_each("path", ["/mcp", "/ws"])
async def test_call_whose_account_is_disconnected_reports_the_lost_session(path: str) -> None:
    started = asyncio.Event()

    async def wait() -> None:
        started.set()
        await asyncio.get_running_loop().create_future()

    async with run_world(path=path) as other:
        other.mcp.tool(wait)
        url = other.url.replace("http:", "ws:") if path == "/ws" else other.url
        async with run_gateway(url, timeout=WAIT) as gate, Browser(gate.base) as alice:
            await (await alice.sign_in(ALICE)).connect(other.accounts, "ada")
            await gate.wait_for_tool("up_wait")
            async with gate.client(ALICE, revision="2025-11-25") as client:
                call = asyncio.create_task(client.call("up_wait", raise_on_error=False))
                await started.wait()
                started.clear()
                await alice.submit("disconnect")
                assert (await call).text.endswith("Its session with you and its state are lost.")
                await alice.connect(other.accounts, "ada")
                assert (await client.call("up_who")).text == "ada"


@for_each("how", ["disconnected", "ended"])
async def test_upstream_that_restarts_while_no_account_can_read_its_lists_stays_usable(how: str) -> None:
    options = per_user_oauth(lists_from="alice")
    async with (
        run_world() as other,
        run_gateway(other.url, auth=options) as gate,
        Browser(gate.base) as alice,
        Browser(gate.base) as bob,
    ):
        other.accounts.expires_in = 0.001
        await (await alice.sign_in(ALICE)).connect(other.accounts, "ada")
        await gate.wait_for_tool("up_who")
        other.accounts.expires_in = 600
        await (await bob.sign_in(BOB)).connect(other.accounts, "brian")
        async with gate.client(BOB, revision="2025-11-25") as client:
            assert (await client.call("up_who")).text == "brian"
            if how == "disconnected":
                await alice.submit("disconnect")
            else:
                other.accounts.refresh.clear()  # Alice's token has expired
            await other.stop()
            for _ in range(2):
                assert (await client.call("up_who", raise_on_error=False)).is_error
            await other.start()
            texts = [(await client.call("up_who", raise_on_error=False)).text for _ in range(3)]
            assert texts[1:] == ["brian", "brian"], texts

"""Each person's own account at a server behind the gateway: who is let in with what, and what attacks get.

The rules are RFCs 6749, 7009, 7636, 8707, 9207 and 9728, and our choice where none is named.
"""

from gateway.accounts import ALICE, BOB, Browser, gateway, world


async def test_each_person_calls_with_the_account_that_they_connected() -> None:
    async with world() as other, gateway(other.url) as gate, Browser(gate.base) as alice, Browser(gate.base) as bob:
        await (await alice.sign_in(ALICE)).connect(other.accounts, "ada")
        await gate.listed("up_who")
        assert await gate.call(ALICE, "up_who") == "ada"
        said = await gate.call(BOB, "up_who")
        assert (
            said == f"The server 'up' needs your account there. Open {gate.base}/connections and connect it. "
            "Then call again."
        )
        await (await bob.sign_in(BOB)).connect(other.accounts, "brian")
        async with gate.client(ALICE) as one, gate.client(BOB) as two:
            for _ in range(3):
                assert [(await each.call("up_who")).text for each in (one, two)] == ["ada", "brian"]

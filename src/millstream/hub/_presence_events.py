"""Presence events: arrivals are published immediately, departures in the background and in order."""

import asyncio
import logging

from millstream._limits import Limiter
from millstream._stores.health import LogOnce
from millstream.hub._channels import is_pattern
from millstream.hub._delivery import Delivery
from millstream.hub._presence import Member, Presence
from millstream.hub._replay import REPLAYS, CatchUp
from millstream.hub._subscriber import Subscription

_logger = logging.getLogger("millstream.hub")


class PresenceEvents:
    """The presence events of this worker's subscribers."""

    def __init__(self, delivery: Delivery, presence: Presence) -> None:
        self._delivery = delivery
        self._audience = delivery.audience
        self._mailboxes = delivery.mailboxes
        self._presence = presence
        self._replay_limiter = Limiter("replays", REPLAYS, clock=lambda: asyncio.get_running_loop().time())
        self.replays = {"full": 0, "gap": 0}
        """Number of returning subscribers that received everything they missed, or a `gap`."""
        self._departures: asyncio.Queue[Subscription] = asyncio.Queue()
        """Bounded by the number of subscribers."""
        self._log_once = LogOnce(
            _logger,
            "The hub can't publish presence events; retrying",
            "The hub can publish presence events again.",
        )

    async def start(self, subscription: Subscription, last_event_id: str, history: int) -> Subscription:
        """Bring a subscriber up to date and deliver future events to it."""
        self._audience.enter(subscription)
        outlet = subscription.outlet
        outlet.on_close(subscription.handle_close)
        await self._delivery.interest.add(subscription.channels)
        await self._delivery.pass_published()
        others = [each for each in self._audience.on(outlet) if each.joined]
        replay = CatchUp(self._delivery, subscription, replays=self._replay_limiter, others=others)
        if last_event_id:
            await replay.resume(last_event_id)
        elif subscription.mailbox:
            client_id = subscription.mailbox
            await replay.mailbox(
                client_id,
                await self._mailboxes.read_offset(client_id),
                await self._mailboxes.oldest_undelivered(client_id),
            )
        elif history:
            await replay.newest(history)
        replay.finish()
        if last_event_id or subscription.mailbox:
            self.replays["gap" if replay.gap_sent else "full"] += 1
        # Nothing must be awaited between the end of the replay and this line, or an event would be lost.
        if outlet.closed:
            return subscription
        self._audience.join(subscription)
        if subscription.mailbox:
            self._mailboxes.client_arrived(subscription.mailbox, served=replay.wrote)
        subscription.write(self._delivery.position_event())
        if subscription.member is not None:
            await self._publish_arrival(subscription, subscription.member)
        return subscription

    async def _publish_arrival(self, subscription: Subscription, member: Member) -> None:
        """Publish the arrival of a subscriber."""
        try:
            for channel in _presence_channels(subscription):
                with self._log_once:
                    await self._delivery.event_tail.settle()
                    await self._presence.join(channel, member)
        finally:
            # Set last, so the departure isn't published before the arrival.
            subscription.present = True
            if subscription.outlet.closed:
                self._departures.put_nowait(subscription)

    def leave(self, subscription: Subscription) -> None:
        """Remove a subscriber whose outlet is closed. Its departure is published in the background."""
        if not self._audience.leave(subscription):
            return
        self._delivery.interest.remove(subscription.channels)
        if subscription.mailbox and subscription.joined:
            self._mailboxes.client_left(subscription.mailbox)
        if subscription.present:
            self._departures.put_nowait(subscription)

    async def run_departures(self) -> None:
        """Publish departures until canceled."""
        while True:
            subscription = await self._departures.get()
            if subscription.member is not None:
                for channel in _presence_channels(subscription):
                    with self._log_once:  # `Presence.refresh` retries
                        await self._delivery.event_tail.settle()
                        await self._presence.leave(channel, subscription.member)


def _presence_channels(subscription: Subscription) -> list[str]:
    return [channel for channel in subscription.channels if not channel.startswith("$") and not is_pattern(channel)]

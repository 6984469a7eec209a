"""The clients' records, and a check that no event was lost, repeated, or reordered.

Every client records its publications, acknowledgments, received events, and reported gaps. `check` compares only these
logs. An acknowledged event must have reached every subscriber of its channel, or the subscriber must have received a
gap. An event without acknowledgment arrives at most once. No subscriber receives an event twice, and all receive events
in the same order.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache


@dataclass(slots=True)
class Publication:
    """One event that a client tried to publish. No two have the same data."""

    channel: str
    data: str
    place: str = ""
    """The id in the server's acknowledgment, or empty without one."""


@dataclass(slots=True)
class Event:
    """An event that a subscriber received."""

    place: str
    data: str


@dataclass(slots=True)
class Told:
    """A gap that was reported to a subscriber."""

    reason: str


@dataclass
class Subscriber:
    """One subscriber, over all of its connections. It resumes with the last id that it received."""

    channel: str
    got: list[Event | Told] = field(default_factory=list)
    """In the order of arrival."""
    first: str = ""
    """The first id that it received, of an event or a position. It must receive everything after it."""


@cache
def parse(place: str) -> tuple[str, int]:
    """Return (epoch, offset) of an id: ``epoch.offset``, for some ids followed by a number."""
    epoch, _, rest = place.partition(".")
    return epoch, int(rest.partition("-")[0])


def check(publications: list[Publication], subscribers: list[Subscriber]) -> list[str]:
    """Everything that is wrong, as sentences; empty when nothing is.

    All subscribers must have been connected at the end, until each had an event that was published after all others.
    """
    sightings = _sightings(publications, subscribers)
    wrong = _contradictions(publications, sightings)
    universe: dict[str, dict[str, dict[int, str]]] = defaultdict(lambda: defaultdict(dict))
    for channel, place, data in sightings:
        epoch, offset = parse(place)
        universe[channel][epoch][offset] = data
    places = {
        channel: {epoch: sorted(events) for epoch, events in epochs.items()} for channel, epochs in universe.items()
    }
    for number, subscriber in enumerate(subscribers):
        channel = subscriber.channel
        walked = _walk(subscriber, universe[channel], places.get(channel, {}))
        wrong += [f"Subscriber {number}: {each}" for each in walked]
    return wrong


def _sightings(publications: list[Publication], subscribers: list[Subscriber]) -> set[tuple[str, str, str]]:
    """(channel, place, data) of everything that was acknowledged or that somebody got."""
    found = {(each.channel, each.place, each.data) for each in publications if each.place}
    for each in subscribers:
        found.update((each.channel, event.place, event.data) for event in each.got if isinstance(event, Event))
    return found


def _contradictions(publications: list[Publication], sightings: set[tuple[str, str, str]]) -> list[str]:
    """What two clients cannot both have seen."""
    wrong: list[str] = []
    tried = {each.data: each for each in publications}
    by_place: dict[str, str] = {}
    by_data: dict[str, str] = {}
    for channel, place, data in sorted(sightings):
        if by_place.setdefault(place, data) != data:
            wrong.append(f"Two events have the place {place}: {by_place[place]} and {data}.")
        if by_data.setdefault(data, place) != place:
            wrong.append(f"{data} was added twice: at {by_data[data]} and {place}.")
        if data not in tried:
            wrong.append(f"{data} was published by nobody.")
        elif tried[data].channel != channel:
            wrong.append(f"{data} of {tried[data].channel} came on {channel}.")
    return sorted(set(wrong))


def _walk(subscriber: Subscriber, universe: dict[str, dict[int, str]], places: dict[str, list[int]]) -> list[str]:
    """Follow one subscriber from event to event: each must be the next one of its channel, or behind a told gap.

    Args:
        subscriber: what it got.
        universe: the events of its channel by epoch and offset.
        places: the offsets of each epoch, in order.
    """
    wrong: list[str] = []
    epoch, offset = parse(subscriber.first) if subscriber.first else ("", 0)
    told = not subscriber.first
    seen: set[str] = set()
    for item in subscriber.got:
        if isinstance(item, Told):
            told = True
            continue
        here, at = parse(item.place)
        if item.data in seen:
            wrong.append(f"it got {item.data} twice.")
        elif here != epoch and not told:
            wrong.append(f"the epoch changed from {epoch} to {here} at {item.data}, and no gap was told.")
        elif here == epoch and at <= offset:
            wrong.append(f"{item.data} ({at}) came behind {offset}.")
        elif not told:
            known = places.get(here, [])
            missed = known[bisect_right(known, offset) : bisect_left(known, at)]
            wrong += [f"it never got {universe[here][each]} ({each}), and no gap was told." for each in missed]
        seen.add(item.data)
        epoch, offset, told = here, at, False
    if not told:
        known = places.get(epoch, [])
        behind = known[bisect_right(known, offset) :]
        wrong += [f"it never got {universe[epoch][each]} ({each}) at the end." for each in behind]
    return wrong

import copy
import random
from collections.abc import Callable

import pytest

from benches.chaos.history import Event, Publication, Subscriber, Told, check
from cases import for_each

pytestmark = pytest.mark.nightly

History = tuple[list[Publication], list[Subscriber]]


def right(seed: int) -> History:
    """A history without a fault: some publications failed, of which some happened; some subscribers missed some."""
    dice = random.Random(seed)
    publications: list[Publication] = []
    journal: list[tuple[str, Event]] = []
    for number in range(200):
        channel, data = dice.choice("ab"), f"event {number}"
        happened, acknowledged = dice.choices([(True, True), (True, False), (False, False)], (8, 1, 1))[0]
        event = Event(f"epoch.{1000 + number}", data)
        if happened:
            journal.append((channel, event))
        publications.append(Publication(channel, data, event.place if acknowledged else ""))
    subscribers = []
    for channel in "aabb":
        subscriber = Subscriber(channel, first="epoch.999")
        for number, (where, event) in enumerate(journal):
            if where != channel:
                continue
            if len(subscribers) == 3 and 50 < number < 60:
                subscriber.got += [Told("trimmed")] if not subscriber.got or event == subscriber.got[-1] else []
                subscriber.got += [Told("trimmed")]
            else:
                subscriber.got.append(event)
        subscribers.append(subscriber)
    return publications, subscribers


def middle(subscriber: Subscriber) -> int:
    """The index of an event with events around it."""
    return len(subscriber.got) // 2


def lose(history: History) -> None:
    """One event is skipped in silence."""
    del history[1][0].got[middle(history[1][0])]


def lose_the_end(history: History) -> None:
    """The newest event never comes."""
    del history[1][0].got[-1]


def lose_everywhere(history: History) -> None:
    """An acknowledged event reaches nobody."""
    place = next(each for each in history[0][50:] if each.place and each.channel == "a").place
    for subscriber in history[1]:
        subscriber.got = [each for each in subscriber.got if isinstance(each, Told) or each.place != place]


def repeat(history: History) -> None:
    """A resumed subscriber gets its last event again."""
    got = history[1][1].got
    got.insert(middle(history[1][1]), got[middle(history[1][1]) - 1])


def swap(history: History) -> None:
    """Two events change places for one of the subscribers."""
    got, at = history[1][0].got, middle(history[1][0])
    got[at], got[at + 1] = got[at + 1], got[at]


def add_twice(history: History) -> None:
    """A publication that was tried again is there twice."""
    for subscriber in history[1][:2]:
        first = subscriber.got[0]
        assert isinstance(first, Event)
        subscriber.got.append(Event("epoch.5000", first.data))


def renumber(history: History) -> None:
    """A failover gives a place to another event."""
    got, at = history[1][0].got, middle(history[1][0])
    old, new = got[at], history[0]
    assert isinstance(old, Event)
    new.append(Publication("a", "another"))
    got[at] = Event(old.place, "another")


def restart(history: History) -> None:
    """The store begins anew, and nobody says so."""
    got = history[1][2].got
    for number, event in enumerate(got[middle(history[1][2]) :], middle(history[1][2])):
        assert isinstance(event, Event)
        got[number] = Event(event.place.replace("epoch", "newer"), event.data)


def mix_channels(history: History) -> None:
    """An event comes on a channel that it was not published to."""
    event = history[1][2].got[0]
    assert isinstance(event, Event)
    history[1][0].got[:0] = [event]


@for_each("seed", range(10))
def test_checker_accepts_correct_histories(seed: int) -> None:
    assert check(*right(seed)) == []


@for_each("seed", range(5))
@for_each("fault", [lose, lose_the_end, lose_everywhere, repeat, swap, add_twice, renumber, restart, mix_channels])
def test_history_checker_detects_each_fault(fault: Callable[[History], None], seed: int) -> None:
    history = copy.deepcopy(right(seed))
    fault(history)
    assert check(*history)

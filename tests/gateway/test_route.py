from millstream.gateway._route import UpstreamFacts, Way, choose_way, plan_route
from millstream.protocol import BY_DATE

OWN = {
    # client, upstream, has_session, gives_sessions, serves_several
    ("2025-11-25", "2025-11-25", True, True, False): True,
    ("2025-06-18", "2026-07-28", True, True, False): True,
    ("2025-11-25", "2026-07-28", True, False, False): False,
    ("2025-11-25", "2026-07-28", False, True, False): False,
    ("2025-11-25", "2026-07-28", True, True, True): False,
    ("2026-07-28", "2026-07-28", False, True, False): False,
    ("2026-07-28", "2025-11-25", False, True, False): False,
}
WAYS = {
    ("2025-11-25", "2026-07-28", False): Way.ROUNDS,
    ("2025-11-25", "2025-06-18", False): Way.STREAM,
    ("2026-07-28", "2026-07-28", False): Way.PASS,
    ("2026-07-28", "2026-07-28", True): Way.VERBATIM,
    ("2025-06-18", "2025-06-18", True): Way.VERBATIM,
    ("2025-06-18", "2025-11-25", True): Way.STREAM,
    ("2026-07-28", "2025-11-25", True): Way.PARK,
}


def test_own_sessions_depend_on_both_revisions_and_on_sessions() -> None:
    for (client, upstream, has_session, gives, several), expected in OWN.items():
        facts = UpstreamFacts(revision=BY_DATE[upstream], gives_sessions=gives, serves_several=several)
        route = plan_route(BY_DATE[client], facts, has_session=has_session)
        assert route.own is expected, (client, upstream, has_session, gives, several)


def test_ways_depend_on_both_revisions_and_on_the_relay() -> None:
    for (client, source, relayed), expected in WAYS.items():
        assert choose_way(BY_DATE[client], BY_DATE[source], is_relayed=relayed) is expected

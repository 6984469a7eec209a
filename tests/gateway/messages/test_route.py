from millstream._gateway.messages.route import UpstreamFacts, Way, choose_way, plan_route
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
PROCESSES = {
    # isolation, several principals, handshake or not known yet -> a process for each principal
    (None, True, True): True,
    (None, True, False): False,
    (None, False, True): False,
    (None, False, False): False,
    ("shared", True, True): False,
    ("shared", False, True): False,
    ("per_principal", True, True): True,
    ("per_principal", True, False): True,
    ("per_principal", False, False): True,
}
SESSIONS = {
    # client, isolation, the upstream keeps sessions, known caller, the client has a session -> one for each call
    ("2026-07-28", None, True, False, False): True,
    ("2026-07-28", "per_session", True, False, False): True,
    ("2026-07-28", "shared", True, False, False): False,
    ("2026-07-28", None, False, False, False): False,
    ("2026-07-28", None, True, True, False): False,
    ("2025-11-25", None, True, False, True): False,
    ("2025-11-25", None, True, False, False): True,
}
WITHOUT_SESSIONS = {
    # client, upstream, has_session, needs_newer
    ("2025-11-25", "2026-07-28", True, False): True,
    ("2025-06-18", "2026-07-28", True, False): True,
    ("2025-11-25", "2026-07-28", True, True): False,
    ("2025-11-25", "2026-07-28", False, False): False,
    ("2026-07-28", "2026-07-28", False, False): False,
}
WAYS = {
    ("2025-11-25", "2026-07-28", False): Way.ROUNDS,
    ("2025-11-25", "2025-06-18", False): Way.STREAM,
    ("2026-07-28", "2026-07-28", False): Way.PASS,
    ("2026-07-28", "2026-07-28", True): Way.VERBATIM,
    ("2025-06-18", "2025-06-18", True): Way.VERBATIM,
    ("2025-06-18", "2025-11-25", True): Way.STREAM,
    ("2026-07-28", "2025-11-25", True): Way.STREAM,
}


def test_own_sessions_depend_on_both_revisions_and_on_sessions() -> None:
    for (client, upstream, has_session, gives, several), expected in OWN.items():
        facts = UpstreamFacts(revision=BY_DATE[upstream], gives_sessions=gives, serves_several=several)
        route = plan_route(BY_DATE[client], facts, has_session=has_session)
        assert route.own is expected, (client, upstream, has_session, gives, several)


def test_handshake_clients_use_their_era_at_upstreams_without_sessions() -> None:
    for (client, upstream, has_session, needs_newer), expected in WITHOUT_SESSIONS.items():
        facts = UpstreamFacts(revision=BY_DATE[upstream], is_relayed=True, gives_sessions=False, answers_handshake=True)
        route = plan_route(BY_DATE[client], facts, has_session=has_session, needs_newer=needs_newer)
        assert route.own is expected, (client, upstream, has_session, needs_newer)
        assert not route.passes("resources/subscribe") or client == upstream


def test_connections_of_principals_stay_separate() -> None:
    facts = UpstreamFacts(revision=BY_DATE["2026-07-28"], separates_principals=True)
    for client in ("2025-11-25", "2026-07-28"):
        assert plan_route(BY_DATE[client], facts, has_session=False).by_principal


def test_ways_depend_on_both_revisions_and_on_the_relay() -> None:
    for (client, source, relayed), expected in WAYS.items():
        assert choose_way(BY_DATE[client], BY_DATE[source], is_relayed=relayed) is expected


def test_each_principal_has_a_process_of_a_command_that_uses_the_handshake() -> None:
    for (isolation, several, keeps), expected in PROCESSES.items():
        facts = UpstreamFacts(
            revision=BY_DATE["2025-11-25"],
            has_processes=True,
            serves_several=True,
            isolation=isolation,
            has_principals=several,
            keeps_sessions=keeps,
        )
        for client in ("2025-11-25", "2026-07-28"):
            route = plan_route(BY_DATE[client], facts, has_session=client == "2025-11-25")
            assert (route.by_principal, route.by_session, route.once) == (expected, False, False), (isolation, several)


def test_calls_of_unknown_callers_have_a_session_each_at_a_url_that_keeps_sessions() -> None:
    for (client, isolation, keeps, known, session), expected in SESSIONS.items():
        facts = UpstreamFacts(
            revision=BY_DATE["2025-11-25"],
            isolation=isolation,
            is_remote=True,
            keeps_sessions=keeps,
            gives_sessions=False,
        )
        route = plan_route(BY_DATE[client], facts, has_session=session, is_known=known)
        assert (route.once, route.by_principal) == (expected, True), (client, isolation, keeps, known, session)

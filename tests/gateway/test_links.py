from millstream.gateway._links import Channel, choose_channel
from millstream.protocol import BY_DATE

CHANNELS = {
    # client, upstream, has_session, gives_sessions, serves_several
    ("2025-11-25", "2025-11-25", True, True, False): Channel.OWN,
    ("2025-06-18", "2026-07-28", True, True, False): Channel.OWN,
    ("2025-11-25", "2026-07-28", True, False, False): Channel.ASK_BACK,
    ("2025-11-25", "2026-07-28", False, True, False): Channel.ASK_BACK,
    ("2025-11-25", "2026-07-28", True, True, True): Channel.ASK_BACK,
    ("2025-11-25", "2025-06-18", True, False, False): Channel.SHARED,
    ("2025-11-25", "2025-06-18", True, True, True): Channel.SHARED,
    ("2025-11-25", "2025-06-18", False, True, False): Channel.SHARED,
    ("2026-07-28", "2026-07-28", False, True, False): Channel.SHARED,
    ("2026-07-28", "2026-07-28", False, False, True): Channel.SHARED,
    ("2026-07-28", "2025-11-25", False, True, False): Channel.PARK,
    ("2026-07-28", "2025-11-25", False, True, True): Channel.PARK,
}


def test_channel_depends_on_both_revisions_and_on_sessions() -> None:
    for (client, upstream, has_session, gives_sessions, serves_several), expected in CHANNELS.items():
        found = choose_channel(
            BY_DATE[client],
            BY_DATE[upstream],
            has_session=has_session,
            gives_sessions=gives_sessions,
            serves_several=serves_several,
        )
        assert found is expected, (client, upstream, has_session, gives_sessions, serves_several)

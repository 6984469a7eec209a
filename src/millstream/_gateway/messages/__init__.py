"""Which connection a call takes, which way its messages travel, and whom a message from an upstream is for.

Names that other folders may import, besides the public ones of `millstream.gateway`:

- `route`: CallRoute, SESSION_METHODS, UpstreamFacts, Way, choose_way, plan_route
- `router`: CHANGES, CallRecipient, ForwardedStream, MessageRouter, OwnSession, SessionRecipient, message_for_client
"""

"""The outbound HTTP engine, used by the client, for sign-ins, and to fetch key sets."""

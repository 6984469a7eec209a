"""The other side of the protocol: one client for servers of every revision and transport. See `millstream.Client`."""

"""The store in Redis or Valkey: a single server, one monitored by Sentinel, or a Cluster."""

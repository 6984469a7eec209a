"""The store in Redis or Valkey: a single server, one that Sentinel watches over, or a Cluster."""

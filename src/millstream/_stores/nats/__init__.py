"""A store on NATS JetStream: replicated logs and values, for data that must survive the loss of a node."""

"""Who watches calls: metrics, the message log, traces."""

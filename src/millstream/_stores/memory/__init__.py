"""The store in memory: values, logs and their deadlines."""

"""Several workers on one machine: a parent that doesn't run user code, and the processes that serve."""

"""Several workers on one machine: a parent that runs no code of the user, and the processes that serve."""

"""A store in the parent process, for the workers on one machine. No server is needed, and no worker owns the data."""

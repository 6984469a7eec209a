"""The wire, without I/O: bytes and values in, bytes and values out. Clock, randomness and keys are arguments."""

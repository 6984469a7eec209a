"""The transport-independent server: functions, calls, features, and dispatch."""

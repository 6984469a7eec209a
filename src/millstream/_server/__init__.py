"""The server without a transport: functions, calls, features, dispatch."""

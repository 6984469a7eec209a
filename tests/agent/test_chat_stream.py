"""The cost of correcting a model's reply."""

import json

from cpu import check_linear
from millstream.agent._chat_stream import StreamRepair


def test_replies_with_many_chunks_are_repaired_in_linear_time() -> None:
    def read(number: int) -> None:
        pieces = [
            {"index": 0, "id": "x", "function": {"name": "add", "arguments": each}}
            for each in ['{"a":[0', *[",{}"] * number]
        ]
        line = json.dumps({"choices": [{"index": 0, "delta": {"tool_calls": pieces}}]}).encode()
        assert b'"index": 0' in StreamRepair().feed(b"data: " + line + b"\n\n")

    check_linear(read, 1_000)

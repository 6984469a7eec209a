"""Characters that can't be seen, or that change how others are shown: what text from others may hide."""

import json
import re

_HIDDEN = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_JOINED = f"[^\x00-\u02ff\u200c\u200d{_HIDDEN}]"
"""Letters of many scripts, and emoji, which joiners shape. Between others, joiners are invisible."""
INVISIBLE = re.compile(rf"[{_HIDDEN}]|(?<!{_JOINED})[\u200c\u200d]|[\u200c\u200d](?!{_JOINED})")
r"""Control and format characters except ``\n`` and ``\t``: bidirectional and line marks, zero-width ones, and tags."""


def escape(text: str) -> str:
    """Return the text with these characters as JSON escapes."""
    return INVISIBLE.sub(lambda found: json.dumps(found[0])[1:-1], text)

"""Takes secrets out of what others print, before it is kept, logged or shown.

1. Hidden is every value of a variable or flag whose name says that it is secret, wherever it stands in a line.
2. Hidden is also what looks like a key of a well-known service, or follows `Bearer` or `password=`, whoever it belongs to.
3. Values shorter than `LEAST` are left: hiding every `1` would make the output unreadable and protect nothing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

HIDDEN = "[hidden]"
LEAST = 6
_NAME = re.compile(r"(?:^|[_-])(?:api[_-]?key|key|token|secret|passw(?:or)?d|credentials?)$", re.IGNORECASE)
_SHAPE = re.compile(
    r"\b(?:sk|pk|rk|hf|ghp|gho|github_pat|glpat|xox[abp])[-_](?=[A-Za-z0-9_-]*\d)[A-Za-z0-9_-]{16,}"
    r"|(?<=Bearer )[A-Za-z0-9._~+/=-]{8,}"
    r"|(?<=password=)[^\s,;'\"]+",
    re.IGNORECASE,
)


class Redaction:
    """The secrets of one child."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        found = {*_in_flags(argv), *(value for name, value in environment.items() if _NAME.search(name))}
        # The longest first: one secret may begin with another.
        self._secrets = sorted((secret for secret in found if len(secret) >= LEAST), key=len, reverse=True)

    def apply(self, line: str) -> str:
        """The line as it may be shown."""
        for secret in self._secrets:
            line = line.replace(secret, HIDDEN)
        return _SHAPE.sub(HIDDEN, line)


def _in_flags(argv: Sequence[str]) -> Iterator[str]:
    """`--api-key VALUE` and `--api-key=VALUE`."""
    for flag, following in zip(argv, [*argv[1:], ""], strict=False):
        name, equals, value = flag.partition("=")
        if name.startswith("-") and _NAME.search(name):
            yield value if equals else following

"""Names, notes and sentences come from files: what every page, table and format does to them first."""

import re

# what XML 1.0 cannot hold, which is also what no terminal, log or table should be handed: control characters (a log's
# colours among them), surrogates and the two non-characters; line ends and tabs are spaces by then
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def one_line(text: str) -> str:
    """Text without line ends, tabs or control characters."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", " ".join(text.split()))

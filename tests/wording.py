"""What a message must carry, however it is worded."""

import re


def telling(*tokens: object) -> str:
    """A pattern for ``pytest.raises(match=...)``: every token stands in the message, in any order and between any words.

    Tokens are what a user looks for: a setting, a file, an id, a number. 1 does not stand in 11 or 1.5, nor ``a`` in ``an``.
    """
    return r"(?s)\A" + "".join(f"(?=.*{_alone(str(token))})" for token in tokens)


def _alone(token: str) -> str:
    before = r"(?<!\w)(?<!\d\.)" if token[0].isdigit() else r"(?<!\w)" if re.match(r"\w", token) else ""
    behind = r"(?!\w)(?!\.\d)" if token[-1].isdigit() else r"(?!\w)" if re.search(r"\w\Z", token) else ""
    return before + re.escape(token) + behind

"""The bytes of a text table as text: UTF-8, UTF-16 and UTF-32 by their marks, else Windows-1252 as a guess."""

import codecs

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins like UTF-16's
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_MOST_CONTROLS = 0.05
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r\f"))


def encoding_of(data: bytes) -> str | None:
    """Find a Unicode encoding by its mark or its pattern of zero bytes; None where neither is there."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding
    head = data[:1000]
    zeros = [head[start::2].count(0) / max(len(head[start::2]), 1) for start in (0, 1)]
    if max(zeros) > 0.5 and min(zeros) < 0.1:
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    return None


def is_binary(head: bytes) -> bool:
    """Test by its first bytes whether a file holds something else than text."""
    if encoding_of(head) is not None:
        return False
    return sum(map(head.count, (bytes([byte]) for byte in _CONTROLS))) > _MOST_CONTROLS * len(head)


def decode(data: bytes) -> tuple[str, bool]:
    """Decode a text file with line ends as they are.

    Returns:
        The text, and whether its encoding is a guess: one byte a letter, read as Windows-1252.

    Raises:
        UnicodeError: If it is none of the encodings.
    """
    encoding = encoding_of(data)
    if encoding is not None:
        return data.decode(encoding), False
    try:
        return data.decode("utf-8"), False
    except UnicodeDecodeError:
        return data.decode("cp1252"), True

"""Ways in which a file arrives broken, for the domains ``files`` and ``checkpoints``."""

from __future__ import annotations

import re
from random import Random

#: Numbers that readers take for sizes, counts and offsets.
EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40,
         2**63 - 1, 2**64 - 1)  # fmt: skip


def garbled(random: Random, content: bytes) -> bytes:
    """The content cut, with bytes changed, doubled, moved or left out, most often once."""
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        content = random.choice(_WAYS)(random, content)
    return content


def garbled_text(random: Random, content: bytes) -> bytes:
    """As :func:`garbled`, but mostly such that it stays text: numbers, names and marks change."""
    if random.random() < 0.3:
        return garbled(random, content)
    text = content.decode(errors="surrogateescape")
    places = [m.span() for m in re.finditer(r"-?\d+(\.\d+)?|\w+|[,:;{}\[\]\"\n\t]", text)]
    for start, stop in sorted(random.sample(places, min(len(places), 2)), reverse=True):
        text = text[:start] + random.choice(_TOKENS) + text[stop:]
    return text.encode(errors="surrogateescape")


_TOKENS = (
    *(
        "",
        "0",
        "-1",
        "1e400",
        "nan",
        "inf",
        "99999999999999999999",
        "1.5",
        "null",
        "true",
        "x",
        "$",
    ),
    *("\u00e9", "\ufeff", "\0", "\n", "\t", ",", ";", '"', "[", "]", "{", "}", "{}", "[]", '""'),
    *("../x", "/etc/passwd", "a" * 3000, "[" * 3000, "%(x)s"),
)


def _cut(random: Random, content: bytes) -> bytes:
    return content[: random.randint(0, len(content))]


def _change(random: Random, content: bytes) -> bytes:
    place = _place(random, content)
    return content[:place] + bytes([random.randrange(256)]) + content[place + 1 :]


def _edge(random: Random, content: bytes) -> bytes:
    width = random.choice((1, 2, 4, 8))
    value = random.choice(EDGES) % 2 ** (8 * width)
    place = _place(random, content)
    if random.random() < 0.5:
        place -= place % width
    order = random.choice(("little", "big"))
    return content[:place] + value.to_bytes(width, order) + content[place + width :]


def _zero(random: Random, content: bytes) -> bytes:
    place, length = _place(random, content), random.choice((1, 4, 16, 64, 512))
    return (
        content[:place]
        + bytes(max(0, min(length, len(content) - place)))
        + content[place + length :]
    )


def _drop(random: Random, content: bytes) -> bytes:
    place = _place(random, content)
    return content[:place] + content[place + random.choice((1, 2, 8, 100)) :]


def _double(random: Random, content: bytes) -> bytes:
    place, length = _place(random, content), random.choice((1, 2, 8, 100))
    return content[: place + length] + content[place : place + length] + content[place + length :]


def _move(random: Random, content: bytes) -> bytes:
    place = _place(random, content)
    return content[place:] + content[:place]


def _noise(random: Random, content: bytes) -> bytes:
    return random.choice((b"", b"\0", random.randbytes(64), random.randbytes(5000)))


def _add(random: Random, content: bytes) -> bytes:
    return content + random.randbytes(random.choice((1, 100, 5000)))


def _place(random: Random, content: bytes) -> int:
    """Mostly in the head, where sizes stand."""
    return random.randrange(max(1, random.choice((16, 64, 512, len(content), len(content)))))


_WAYS = (
    *(_cut, _cut, _change, _change, _edge, _edge, _edge),
    *(_zero, _drop, _double, _move, _noise, _add),
)

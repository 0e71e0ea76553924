"""Damage to files: small changes of bytes, of lines and cells, of JSON trees.  All randomness comes from the caller's generator."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

#: What has broken readers of any kind before.
TOKENS: tuple[bytes, ...] = (
    b"", b"\0", b"\n", b"\r\n", b"\r", b"\t", b" ", b",", b";", b'"', b"'", b'""', b"'''", b'"""', b"\\", b"/", b"..", b"../", b"/../../etc/passwd",
    b"C:\\x", b"~root/x", b"-", b"-1", b"0", b"1", b"-0.0", b"nan", b"inf", b"-inf", b"1e400", b"1e-400", b"NaN", b"Infinity", b"null", b"true",
    b"2147483648", b"4294967295", b"9223372036854775808", b"18446744073709551616", b"9" * 5000, b"0x7f", b"1_0", b"\xd9\xa1\xd9\xa2", b"\xc2\xb2",
    b"\xff", b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xe2\x80\xae", b"\x1b[31m", b"\xf0\x9f\x99\x82", b"\xe2\x80\xa8",
    b"[" * 2000, b"{" * 2000, b"]" * 10, b"[[", b"]]", b"{}", b"[]", b"<script>", b"=1+1", b"a" * 70000, b"%s%n", b"{0}", b"{in}", b"{{", b"__class__",
)  # fmt: skip
#: Values at the edges of what fits into 8, 16 and 32 bits.
EDGES = (0, 1, 2, 15, 16, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)


def damaged(
    data: bytes, rng: random.Random, others: Sequence[bytes] = (), tokens: Sequence[bytes] = (), most: int = 6
) -> bytes:
    """``data`` with one to ``most`` changes.  others: files of the same kind to take pieces from.  tokens: words of the format."""
    out = bytearray(data)
    for _ in range(1 if rng.random() < 0.5 else rng.randint(2, most)):
        _CHANGES[rng.randrange(len(_CHANGES))](out, rng, others, (*TOKENS, *tokens))
    return bytes(out)


def _span(out: bytearray, rng: random.Random, most: int = 64) -> tuple[int, int]:
    start = rng.randint(0, len(out))
    return start, min(len(out), start + rng.choice((1, 1, 2, 4, 8, rng.randint(1, most))))


def _flip(out: bytearray, rng: random.Random, *_: Any) -> None:
    if out:
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)


def _byte(out: bytearray, rng: random.Random, *_: Any) -> None:
    if out:
        out[rng.randrange(len(out))] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))


def _delete(out: bytearray, rng: random.Random, *_: Any) -> None:
    a, b = _span(out, rng, 512)
    del out[a:b]


def _cut(out: bytearray, rng: random.Random, *_: Any) -> None:
    del out[rng.randint(0, len(out)) :]


def _repeat(out: bytearray, rng: random.Random, *_: Any) -> None:
    a, b = _span(out, rng)
    out[a:a] = out[a:b] * rng.choice((1, 1, 2, 40))


def _token(out: bytearray, rng: random.Random, others: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    a, b = _span(out, rng, 16)
    out[a : b if rng.random() < 0.5 else a] = rng.choice(tokens)


def _word(out: bytearray, rng: random.Random, others: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    """Another word in the place of a whole one: what stands between separators."""
    text = bytes(out)
    marks = [i for i, c in enumerate(text[:20000]) if c in b" \t\n,;=:\"'[]{}|"]
    if len(marks) > 1:
        i = rng.randrange(len(marks) - 1)
        out[marks[i] + 1 : marks[i + 1]] = rng.choice(tokens)


def _number(out: bytearray, rng: random.Random, *_: Any) -> None:
    """A binary number at one of its edges, in either order of bytes."""
    size = rng.choice((1, 2, 4, 4, 8))
    if len(out) >= size:
        at = rng.randint(0, len(out) - size) if rng.random() < 0.5 else rng.randint(0, min(len(out) - size, 128))
        value = rng.choice(EDGES) if rng.random() < 0.8 else rng.getrandbits(8 * size)
        out[at : at + size] = (value % (1 << (8 * size))).to_bytes(size, rng.choice(("little", "big")))


def _splice(out: bytearray, rng: random.Random, others: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    if others:
        other = rng.choice(others)
        a, b = _span(out, rng, 4096)
        start = rng.randint(0, len(other))
        out[a:b] = other[start : start + rng.choice((8, 64, 1024, 65536))]


def _line(out: bytearray, rng: random.Random, *_: Any) -> None:
    """A line twice, away, or elsewhere."""
    lines = bytes(out).split(b"\n")
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    how = rng.randrange(4)
    if how == 0:
        lines.insert(j, lines[i])
    elif how == 1:
        del lines[i]
    elif how == 2:
        lines[i], lines[j] = lines[j], lines[i]
    else:
        lines[i] = lines[i][: rng.randint(0, len(lines[i]))]
    out[:] = b"\n".join(lines)


_CHANGES: tuple[Callable[..., None], ...] = (
    _flip, _flip, _byte, _byte, _delete, _cut, _repeat, _token, _token, _word, _word, _number, _number, _splice, _line,
)  # fmt: skip

#: What may stand in the place of any value of a JSON file.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, -(2**64), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "a", "nan", "1", "../../x",
    "/etc/passwd", "<script>alert(1)</script>", "=1+1", "\x1b[31m\u202e", "\ud800", "x" * 5000, [], [[]], [None], {}, {"": None}, [1, "a", {}], {"a": {"b": [1]}},
)  # fmt: skip


def json_damaged(data: bytes, rng: random.Random) -> bytes:
    """JSON with one to four of its values replaced, taken out, renamed or doubled; other bytes come back as they are."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return data
    for _ in range(1 if rng.random() < 0.6 else rng.randint(2, 4)):
        places: list[tuple[Any, Any]] = []
        waiting = [tree]
        while waiting:
            node = waiting.pop()
            if isinstance(node, dict | list):
                keys = list(node) if isinstance(node, dict) else list(range(len(node)))
                places += [(node, k) for k in keys]
                waiting += [node[k] for k in keys]
        if not places:
            return data
        # the upper storeys first: there are few keys there, and most of the code looks at them
        node, key = places[rng.randrange(len(places))] if rng.random() < 0.5 else places[rng.randrange(min(len(places), 40))]
        how = rng.randrange(6)
        if how == 0:
            del node[key]
        elif how == 1 and isinstance(node, dict):
            node[rng.choice(("", "x", "label", "__class__", "\x1b[0m"))] = node.pop(key)
        elif how == 2:
            other, k = rng.choice(places)
            if (isinstance(other, list) and k >= len(other)) or (isinstance(other, dict) and k not in other):
                continue
            node[key] = json.loads(json.dumps(other[k]))  # a copy: no tree within itself
        elif how == 3 and isinstance(node, list):
            node.insert(key, json.loads(json.dumps(node[key])))
        else:
            node[key] = json.loads(json.dumps(rng.choice(VALUES)))
    return json.dumps(tree).encode("utf-8", "replace")

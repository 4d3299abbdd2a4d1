"""How `damaged.py` damages a file: its bytes, or the values of what it holds."""

from __future__ import annotations

import csv
import io
import json
import random
import sqlite3
from collections.abc import Callable
from typing import Any

_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 7, 2**31, 2**63, 10**30, 0.5, -1e-3, 1e308, float("nan"), float("inf")),
    *("", "wrong", "../../x", "\ud800", [], [3, 1], {}, {"a": 1}, [[[]]], list(range(300))),
)
_ODD_CELLS = (
    "",
    "-1",
    "1e999",
    "nan",
    "x",
    "\0",
    "9" * 400,
    '"',
    "é",
    "../..",
    "0",
    "2",
    "3.5",
    "1e308",
    "|",
    "ab\ncd",
)


def damaged(data: bytes, suffix: str, draw: random.Random) -> bytes:
    """Return a file with other bytes or, half of the times where it has such, other values."""
    change = _BY_VALUE.get(suffix)
    return change(data, draw) if change and draw.random() < 0.5 else with_other_bytes(data, draw)


def with_other_bytes(data: bytes, draw: random.Random) -> bytes:
    """Return a file cut off, with changed, doubled, lost or inserted bytes, or with large numbers in its head."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8, 40))):
        if not changed:
            break
        at = draw.randrange(len(changed)) if draw.random() < 0.5 else draw.randrange(min(len(changed), 300))
        way = draw.randrange(6)
        if way == 0:
            changed[at] = draw.randrange(256)
        elif way == 1:
            changed[at : at + 4] = draw.choice((b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\xea\x60"))
        elif way == 2:
            del changed[at : at + draw.randrange(1, 30)]
        elif way == 3:
            changed[at:at] = changed[at : at + draw.randrange(1, 60)]
        elif way == 4:
            changed[at:at] = draw.choice((b'"', b",", b"\n", b"null", b"\xff", b"\xed\xa0\x80", b"{", b"1e999"))
        elif draw.random() < 0.3:
            del changed[at:]
    return bytes(changed)


def places(value: Any, *above: Any) -> list[tuple[Any, ...]]:
    """Where there is something in nested dictionaries and lists."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in entries for place in [(*above, key), *places(inner, *above, key)]]


def change_one(value: Any, draw: random.Random, odd: tuple[Any, ...]) -> Any:
    """Take a part out of nested dictionaries and lists, or put something else in its place; each level as often."""
    found = places(value)
    if not found:
        return draw.choice(odd)
    depth = draw.choice(sorted({len(place) for place in found}))
    *above, last = draw.choice([place for place in found if len(place) == depth])
    inner = value
    for key in above:
        inner = inner[key]
    if draw.random() < 0.2:
        del inner[last]
    else:
        inner[last] = draw.choice(odd)
    return value


def _json(data: bytes, draw: random.Random) -> bytes:
    return json.dumps(change_one(json.loads(data), draw, _ODD_VALUES)).encode()


def _csv(data: bytes, draw: random.Random) -> bytes:
    rows = list(csv.reader(io.StringIO(data.decode())))
    row = draw.choice(rows)
    row[draw.randrange(len(row))] = draw.choice(_ODD_CELLS)
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode()


def _setting(data: bytes, draw: random.Random) -> bytes:
    key = data.decode().partition("=")[0]
    value = draw.choice([*_ODD_CELLS, *map(repr, _ODD_VALUES), "$1/0", "@nothing", "%x", "[", "{'a':", "0x10", "1_0"])
    return f"{key}={value}".encode("utf-8", "surrogatepass")


def _checkpoint(data: bytes, draw: random.Random) -> bytes:
    import torch

    state = change_one(torch.load(io.BytesIO(data), weights_only=True), draw, (*_plain_values(), *_tensors()))
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _plain_values() -> tuple[Any, ...]:
    return tuple(value for value in _ODD_VALUES if value not in (10**30, 2**63))  # no pickle of weights holds them


def _tensors() -> tuple[Any, ...]:
    import torch

    nothing = torch.zeros(0)
    return torch.zeros(3, 1, 2), nothing, torch.full((4,), torch.nan), torch.ones(2, dtype=torch.int64), torch.tensor(1)


def _weights(data: bytes, draw: random.Random) -> bytes:
    from safetensors.torch import load, save

    tensors: dict[str, Any] = load(data)
    name = draw.choice(sorted(tensors))
    way, tensor = draw.randrange(4), tensors[name]
    if way == 0:
        del tensors[name]
    elif way == 1:
        tensors[name] = draw.choice(_tensors())
    elif way == 2:
        tensors[name + draw.choice(("x", ".weight", ""))] = tensor.new_zeros(draw.randrange(5), 3)
    elif tensor.numel():
        tensor.view(-1)[draw.randrange(tensor.numel())] = (
            draw.choice((0, 7, 1e30, float("nan"), float("inf"))) if (tensor.is_floating_point()) else 9
        )
    return save(tensors)


def _sqlite(data: bytes, draw: random.Random) -> bytes:
    with sqlite3.connect(":memory:") as base:
        base.deserialize(data)
        tables = [name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type='table' ORDER BY name")]
        table = draw.choice(tables)
        columns = [row[1] for row in base.execute(f"PRAGMA table_info({table})") if row[1] != "number"]
        column, rows = draw.choice(columns), [row for (row,) in base.execute(f"SELECT rowid FROM {table}")]
        value = draw.choice([None, -1, 2**62, "", "x", "{}", "[]", b"\xff\0", '{"kind": 3}', '{"a": 1}', 1.5])
        old = base.execute(f"SELECT {column} FROM {table} WHERE rowid=?", (row := draw.choice(rows),)).fetchone()[0]
        if isinstance(old, str) and old.startswith(("{", "[")) and draw.random() < 0.8:
            value = _json(old.encode(), draw).decode()
        base.execute(f"UPDATE OR IGNORE {table} SET {column}=? WHERE rowid=?", (value, row))
        base.commit()
        return base.serialize()


_BY_VALUE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": _json,
    ".csv": _csv,
    ".setting": _setting,
    ".pt": _checkpoint,
    ".pth": _checkpoint,
    ".safetensors": _weights,
    ".sqlite": _sqlite,
}

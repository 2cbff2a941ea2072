"""What a hostile person, a broken disk or a slip of the hand gives a command: values of options, bytes of files."""

import io
import json
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load, save

_DEEP = 100_000
_HEADER = 8  # bytes that say how long the header of a safetensors file is
_LONGEST_HEADER = 100_000_000  # that the library reads

NUMBERS = ("-1", "0", "0.01", "100000000000000000000", str(2**63), "1e400", "1e-400", "nan", "inf", "-inf", "0x10")
_UNICODE = ("e\u0301\u0300", "\U0001f3a8", "\u05e9\u05dc\u202e", "0.0\u0663", "a\0b", "\udcff")
TEXTS = ("", " ", "x", *_UNICODE, "--help", "-", "=,:")
PATHS = ("missing/of/it.png", "a" * 5000, "folder", "text.txt", "picture.png", "/dev/null")  # in a folder of `lay_out`
VALUES = (*NUMBERS, *TEXTS, *PATHS)

OBJECTS: tuple[Callable[[], object], ...] = (
    *(lambda value=value: value for value in (False, -1, 0, 0.01, 10**20, 2**63, math.nan, math.inf, -math.inf)),
    *(lambda text=text: text for text in (*TEXTS, *PATHS)),
    lambda: b"bytes",
    list,
    dict,
    object,
    lambda: [1, "a"],
    lambda: {"a": {"a": 1}},
    lambda: np.zeros((2, 1, 8, 12)),
    lambda: np.array(["a"]),
    lambda: np.zeros((0, 1, 8, 12), np.uint8),
    lambda: torch.full((1, 2, 3), math.nan),
    lambda: torch.full((2, 3), 2**40),
    lambda: (torch.zeros(2, 2, 3, dtype=torch.int64) - 1,),
)


def pictures() -> dict[str, bytes]:
    """A small picture in ten formats, of several depths and compressions, by its file's name."""
    colour = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((20, 16))
    deep = Image.fromarray((np.arange(320, dtype=np.uint16) * 200).reshape(16, 20))
    grey, exif = colour.convert("L"), Image.Exif()
    exif[0x0112] = 6
    made = {"colour.png": _encoded(colour, "PNG", exif=exif), "grey.png": _encoded(grey, "PNG")}
    made |= {"deep.png": _encoded(deep, "PNG"), "palette.png": _encoded(colour.convert("P"), "PNG")}
    made |= {"a.jpg": _encoded(colour, "JPEG", exif=exif), "b.jpeg": _encoded(colour, "JPEG", progressive=True)}
    made |= {"c.webp": _encoded(colour, "WEBP"), "d.webp": _encoded(colour.convert("RGBA"), "WEBP", lossless=True)}
    made |= {"e.bmp": _encoded(colour, "BMP"), "f.gif": _encoded(colour, "GIF"), "g.ppm": _encoded(colour, "PPM")}
    made |= {"h.pgm": _encoded(grey, "PPM"), "i.tif": _encoded(deep, "TIFF")}
    for compression in ("raw", "tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits", "lzma", "zstd"):
        made[f"{compression}.tiff"] = _encoded(colour, "TIFF", compression=compression)
    return made | {"fax.tiff": _encoded(grey.convert("1"), "TIFF", compression="group4")}


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def damaged(data: bytes, rng: random.Random, other: bytes = b"") -> bytes:
    """Bytes flipped, replaced, cut, doubled, moved, or under the beginning of another file."""
    changed, at = bytearray(data), rng.randrange(len(data) or 1)
    kind = rng.randrange(8)
    if kind < 3:  # of a header more often than of the rest
        for _ in range(rng.choice((1, 2, 8, 40))):
            index = rng.randrange(min(len(data), rng.choice((32, 128, len(data)))) or 1)
            changed[index : index + 1] = bytes([rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))])
        return bytes(changed)
    if kind == 3:
        return data[:at]
    if kind == 4:
        return data + data
    if kind == 5:
        return data[:at] + data[rng.randrange(len(data) or 1) :]
    if kind == 6:
        return (other or bytes(64))[: rng.choice((4, 16, 64))] + data[at:]
    changed[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(4), b"\x00\xff\x00\xff"))
    return bytes(changed)


def _nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


def _json_values(before: object) -> list[object]:
    """What may stand in place of a value."""
    number = before if isinstance(before, int | float) else 7
    numbers = [-1, 0, 1.5, 10**6, 10**9, 2**31, 2**63, 10**400, 1e308, math.nan, math.inf, -math.inf]
    texts = ["", " ", "x" * 20_000, "../../../etc/passwd", "/dev/zero", "a\0b", "\ud800", "\U0001f3a8", str(before)]
    lists = [[], [before], [before] * 3, _nested(50), _nested(400)]
    return [None, True, *numbers, -number, number * 1000, *texts, *lists, {}, {"a": before}]


def damaged_json(data: bytes, rng: random.Random) -> bytes:
    """A JSON document (of several lines the last or any) that is another, of another kind, or none."""
    kind = rng.randrange(10)
    whole = (b"", b"{}", b"[]", b"null", b"7", b'"x"', b"NaN", b"\xff\xfe\0", b" " * 10**7)
    if kind == 0:
        return rng.choice((*whole, b"[" * _DEEP, b'{"a":' * _DEEP))
    if kind == 1:
        return damaged(data, rng)
    *before, last = [line for line in data.splitlines() if line] if data.count(b"\n{") else [data]
    content = json.loads(last)
    for _ in range(rng.choice((1, 1, 1, 3))):
        _change(content, rng)
    text = json.dumps(content)
    if kind == 2 and isinstance(content, dict) and content:  # a key that stands there twice
        key = rng.choice(list(content))
        text = text[:-1] + f", {json.dumps(key)}: {json.dumps(rng.choice(_json_values(content[key])))}}}"
    if kind == 3:
        text = text.replace("0", rng.choice(("9" * 5000, "1e999", "[" * _DEEP, "-0", "0x1")), 1)
    return b"\n".join([*before, text.encode()]) + b"\n"


def _change(content: Any, rng: random.Random) -> None:
    """Change something in an object or a list, at any depth."""
    while True:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(content[key], dict | list) and content[key] and rng.random() < 0.8:
            content = content[key]
            continue
        kind = rng.randrange(8)
        if kind == 0:
            del content[key]
        elif kind == 1 and isinstance(content, dict):
            content[rng.choice(("", "a" * 3000, "\ud800", "../x", "__class__", f"{key} "))] = content.pop(key)
        else:
            content[key] = rng.choice(_json_values(content[key]))
        return


def damaged_tensors(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with another header, other bytes, or whole and of other tensors."""
    size = int.from_bytes(data[:_HEADER], "little")
    header, rest = data[_HEADER : _HEADER + size], data[_HEADER + size :]
    kind = rng.randrange(8)
    if kind == 0:
        return damaged(data, rng)
    if kind == 1:
        lengths = (0, 1, size - 1, size + 1, len(data), _LONGEST_HEADER, _LONGEST_HEADER + 1, 2**31, 2**63, 2**64 - 1)
        return rng.choice(lengths).to_bytes(_HEADER, "little") + data[_HEADER:]
    if kind == 2:
        changed = damaged_json(header, rng)
        return len(changed).to_bytes(_HEADER, "little") + changed + rest
    if kind == 3:
        return size.to_bytes(_HEADER, "little") + _with_another_tensor(header, rng) + rest
    tensors = load(data)
    name = rng.choice(sorted(tensors))
    tensors[name] = rng.choice(_TENSORS)(tensors[name])
    if rng.random() < 0.2:
        tensors[rng.choice(("../../x", "", "a" * 3000, "level7", "labels"))] = tensors.pop(name)
    metadata = json.loads(header).get("__metadata__")
    return save({key: tensor.contiguous() for key, tensor in tensors.items()}, metadata)


def _with_another_tensor(header: bytes, rng: random.Random) -> bytes:
    """A header of the same length in which a shape, a type or offsets of a tensor are others."""
    content = json.loads(header)
    own = content[rng.choice([name for name in content if name != "__metadata__"])]
    shapes: list[object] = [[-1], [0], [2**63], [2**32, 2**32], [1, *own["shape"]], [], [1.5], own["shape"][::-1]]
    offsets: list[object] = [[0, 2**63], [-8, 0], [8, 0], [0, 0], [10**9, 10**9 + 8]]
    types: list[object] = ["F64", "I8", "F16", "BOOL", "F8_E4M3", "C64", "U64", "X"]
    key, values = rng.choice((("shape", shapes), ("dtype", types), ("data_offsets", offsets)))
    own[key] = rng.choice(values)
    return json.dumps(content, separators=(",", ":")).encode().ljust(len(header))


def _filled(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: torch.full_like(tensor, value if tensor.is_floating_point() else min(value, 100))


_TENSORS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    lambda tensor: tensor[None],
    lambda tensor: tensor.flatten(),
    lambda tensor: tensor[:0] if tensor.ndim else tensor,
    lambda tensor: tensor[:1] if tensor.ndim else tensor[None],
    lambda tensor: torch.cat([tensor, tensor]) if tensor.ndim else tensor,
    lambda tensor: tensor.flip(0) if tensor.ndim else tensor,
    lambda tensor: tensor.double(),
    lambda tensor: tensor.half(),
    lambda tensor: tensor.bool(),
    lambda tensor: tensor.to(torch.uint8),
    lambda tensor: tensor.long() + 2**40,
    lambda tensor: -1 - tensor.abs(),
    lambda tensor: tensor * 1000,
    _filled(0),
    _filled(-1),
    _filled(1e30),
    lambda tensor: torch.full(tensor.shape, math.nan),
    lambda tensor: torch.full(tensor.shape, math.inf),
)

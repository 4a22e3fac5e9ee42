"""Data sets that must be refused, each in one line that names the file; see bad_files.py."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
from PIL import Image

from tests.bad_files import Attack

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EOF\n"


def png(width: int = 32, height: int = 32) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(file, format="png")
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def bomb(side: int) -> bytes:
    """A picture of so many black pixels; what it has of them is a thousandth of a thousandth."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    content = zlib.compress(bytes(2**20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content)


def table(
    pictures: list[Any] | None = None,
    labels: Any = None,
    metadata: str | None = None,
    names: tuple[str, str] = ("image", "label"),
) -> pyarrow.Table:
    rows = [{"bytes": png(), "path": None}] * 20 if pictures is None else pictures
    values = [0, 1] * (len(rows) // 2) if labels is None else labels
    found = pyarrow.table({names[0]: rows, names[1]: values})
    return found if metadata is None else found.replace_schema_metadata({"huggingface": metadata})


def parquet(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: pyarrow.parquet.write_table(table(**changes), folder / "train-0.parquet")


def with_picture(content: bytes | None) -> Callable[[Path], object]:
    row = {"bytes": png(), "path": None}
    return parquet(pictures=[row] * 3 + [{"bytes": content, "path": "x"}])


def referring_to(picture: bytes, rows: int, **options: Any) -> Callable[[Path], object]:
    """A file of few kilobytes whose rows all refer to the same picture."""

    def write(folder: Path) -> None:
        values = pyarrow.DictionaryArray.from_arrays(np.zeros(rows, np.int32), [picture])
        images = pyarrow.StructArray.from_arrays([values], ["bytes"])
        content = pyarrow.table({"image": images, "label": np.arange(rows) % 2})
        path = folder / "train-0.parquet"
        pyarrow.parquet.write_table(content, path, store_schema=False, **options)

    return write


def arrow(
    pictures: list[Any] | None = None,
    words: list[str] | None = None,
    change: tuple[bytes, bytes] = (b"", b""),
    opened: Any = pyarrow.ipc.new_stream,
    **options: Any,
) -> Callable[[Path], None]:
    """A file as ``save_to_disk`` writes it, but for these pictures, bytes and options."""

    def write(folder: Path) -> None:
        (folder / "state.json").write_text("{}")
        content, path = table(pictures=pictures), folder / "data-0.arrow"
        if words:
            column = pyarrow.DictionaryArray.from_arrays([0] * len(content), words)
            content = content.append_column("words", column)
        chosen = pyarrow.ipc.IpcWriteOptions(**options)
        with opened(str(path), content.schema, options=chosen) as sink:
            sink.write_table(content)
        path.write_bytes(path.read_bytes().replace(*change, 1))

    return write


def of_names(names: Any) -> Callable[[Path], object]:
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    return parquet(metadata=json.dumps({"info": {"features": features}}))


def two_kinds(folder: Path) -> None:
    parquet()(folder)
    pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), folder / "train-1.parquet")


def cifar10_parquet(**changes: Any) -> Callable[[Path], object]:
    return parquet(names=("img", "label"), **changes)


def batches(content: Any = None, body: bytes | None = None) -> Callable[[Path], object]:
    """CIFAR-10 as torchvision has it, with one file of this content or these bytes."""

    def write(folder: Path) -> None:
        folder = folder / "cifar-10-batches-py"
        folder.mkdir()
        good = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}
        for number in range(1, 6):
            (folder / f"data_batch_{number}").write_bytes(pickle.dumps(good, protocol=2))
        bad = pickle.dumps({**good, **(content or {})}, protocol=2) if body is None else body
        (folder / "data_batch_3").write_bytes(bad)

    return write


def crafted(state: bytes, code: bytes = b"u1") -> bytes:
    """A pickle of an array with this state: version, shape, type, order, data."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR("
        + state.replace(b"DTYPE", b"cnumpy\ndtype\n(U\x02" + code + b"K\x00K\x01tR")
        + b"tb"
    )
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels]K\x01au."


DATA: dict[str, tuple[Callable[[Path], object], str]] = {
    "half of a Parquet file": (
        lambda folder: (folder / "train-0.parquet").write_bytes(b"PAR1" + bytes(100)),
        r"train-0.parquet is truncated or damaged",
    ),
    "no picture for an image": (
        parquet(pictures=[None, None, *table()["image"].to_pylist()]),
        "image 0 is none",
    ),
    "a picture without bytes": (with_picture(None), "image 3 is none"),
    "a picture of no format": (with_picture(b"no picture"), "image 3: it is not a picture"),
    "a picture that Ghostscript would run": (with_picture(EPS), "image 3: it is not a picture"),
    "half of a picture": (with_picture(png(300, 300)[:60]), "image 3 is truncated or damaged"),
    "a decompression bomb": (with_picture(bomb(60_000)), "DecompressionBombError"),
    "a smaller decompression bomb": (with_picture(bomb(9_000)), "9000 x 9000 pixels, too many"),
    "40 GB of one picture in 2 kB": (
        referring_to(bytes(2**23), 5000, compression="zstd"),
        "train-0.parquet: what is in it is more than 64 times as large as the file",
    ),
    "a picture of 70 MB in 3 kB": (
        referring_to(bytes(70 * 2**20), 1, compression="zstd"),
        "train-0.parquet: what is in it is more than 64 times as large as the file",
    ),
    "two million pictures that are the same": (
        referring_to(png(), 2_000_000),
        "train-0.parquet: what is in it is more than 64 times as large as the file",
    ),
    "a compressed Arrow file of 70 MB in 10 kB": (
        arrow([{"bytes": bytes(35 * 2**20)}] * 2, compression="zstd"),
        "data-0.arrow: what is in it is more than 64 times as large as the file",
    ),
    "the same in the format with a footer": (
        arrow([{"bytes": bytes(35 * 2**20)}] * 2, opened=pyarrow.ipc.new_file, compression="zstd"),
        "data-0.arrow: what is in it is more than 64 times as large as the file",
    ),
    "a dictionary of 70 MB in an Arrow file of 10 kB": (
        arrow(words=["x" * 70 * 2**20], compression="zstd"),
        "data-0.arrow: what is in it is more than 64 times as large as the file",
    ),
    "pictures outside of an Arrow file": (
        arrow(
            [{"bytes": png()}] * 4,
            change=(struct.pack("<2i", 0, len(png())), struct.pack("<2i", 0, 2**30)),
        ),
        "data-0.arrow is truncated or damaged .*out of bounds",
    ),
    "a column whose name is no text": (
        arrow(change=(b"image", b"im\xe4ge")),
        "data-0.arrow is truncated or damaged .*UnicodeDecodeError",
    ),
    "no picture for an image of an Arrow file": (
        arrow([{"bytes": png()}, {"bytes": None}]),
        "data-0.arrow: image 1 is none",
    ),
    "pictures that are text": (parquet(pictures=[{"bytes": "x"}] * 2), "has the columns image"),
    "no label for an image": (parquet(labels=[None, 1] * 10), "has the labels none"),
    "labels of 2^40": (parquet(labels=[0, 2**40] * 10), "has the label 1099511627776"),
    "labels of 2^63": (
        parquet(labels=pyarrow.array([0, 2**63] * 10, pyarrow.uint64())),
        "has the label 9223372036854775808",
    ),
    "floats as labels": (parquet(labels=[0.0, 1.5] * 10), "has the columns image, label; needed"),
    "no images": (
        parquet(
            pictures=pyarrow.array([], table()["image"].type),
            labels=pyarrow.array([], pyarrow.int64()),
        ),
        "has no images",
    ),
    "a second file of other columns": (two_kinds, "train-1.parquet: it has the columns x"),
    "Hugging Face metadata that are no JSON": (parquet(metadata="{"), "truncated or damaged"),
    "names of classes that are a number": (of_names(10), "no list of names but 10"),
    "names of classes that are numbers": (of_names([1, 2]), "no list of names but a list"),
    "CIFAR-10 with a null label": (
        cifar10_parquet(labels=[None, 1] * 10),
        "label of image 0 is None",
    ),
    "CIFAR-10 with floats as labels": (cifar10_parquet(labels=[1.0, 2.0] * 10), "image 0 is 1.0"),
    "CIFAR-10 with a picture of another size": (
        cifar10_parquet(pictures=[{"bytes": png(31, 32)}] * 2),
        "image 0: it is not a 32 x 32 picture but 32 x 31",
    ),
    "a batch that calls os.system": (batches({"data": Attack()}), "asks for posix.system"),
    "a batch without pixels": (batches({"data": [1]}), "it has no pixels"),
    "a batch of floats": (
        batches({"data": np.zeros((2, 3072))}),
        "numbers of type 'f8', not bytes",
    ),
    "a batch of pointers": (
        batches(body=crafted(b"K\x01K\x01K\x01\x86DTYPE\x89U\x08AAAAAAAA", b"O8")),
        "numbers of type 'O8', not bytes",
    ),
    "a batch of a shape beyond its data": (
        batches(
            body=crafted(
                b"K\x01\x8a\x08" + (2**61).to_bytes(8, "little") + b"K\x01\x86DTYPE\x89C\x02AA"
            )
        ),
        "data_batch_3 is truncated or damaged",
    ),
    "a batch with floats as labels": (batches({"labels": [0.5, 1]}), "image 0 is 0.5, not a whole"),
    "a batch with nested labels": (batches({"labels": [[0], 1]}), "image 0 is a list, not a whole"),
    "a batch with too few labels": (batches({"labels": [0]}), "10 images and 9 labels"),
    "half of a batch": (batches(body=crafted(b"")[:40]), "data_batch_3 is truncated or damaged"),
}

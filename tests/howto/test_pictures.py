"""docs/howto/resize-pictures.md, with pictures made here."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.howto.conftest import Page, Run, ended
from tests.support.harness import NodeProcess
from tq_node import Context

pytestmark = pytest.mark.cluster
PAGE = "resize-pictures"
ORIENTATION = 0x0112
GPS = 0x8825


@pytest.fixture(scope="module")
def pictures(home: Path) -> Path:
    """Made before the node starts and asked for by each test."""
    folder = home / "pictures"
    folder.mkdir()
    return folder


@pytest.fixture
def holiday(pictures: Path) -> Path:
    """A JPEG of 2000 x 1500, lying on its side: upright it is 1500 x 2000."""
    picture = Image.radial_gradient("L").resize((2000, 1500)).convert("RGB")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[GPS] = {1: "N", 2: (48.0, 51.0, 30.0)}
    path = pictures / "holiday.jpg"
    picture.save(path, exif=exif, comment=b"at home")
    return path


def test_the_page_s_picture(node: NodeProcess, page: Page, home: Path, holiday: Path) -> None:
    task = ended(node, node.post("/tasks/submit", page.task).json["task_id"])
    assert task["status"] == "completed", task
    widths = page.task["payload"]["widths"]
    assert [(copy["width"], copy["height"]) for copy in task["result"]] == [(w, round(w * 4 / 3)) for w in widths]
    assert json.dumps(task["result"][0], separators=(",", ":")) in page.text
    assert (task["progress"]["fraction"], task["queue"]) == (1, "pictures")
    assert {path.name for path in (home / "thumbnails").iterdir()} == {f"holiday-{width}.jpg" for width in widths}
    for copy in task["result"]:
        with Image.open(home / "thumbnails" / copy["file"]) as picture:
            picture.load()
            assert (picture.format, picture.size) == ("JPEG", (copy["width"], copy["height"]))
            assert not picture.getexif()
            assert "comment" not in picture.info
    assert holiday.exists()


def test_again_is_the_same_again(run: Run, home: Path, holiday: Path) -> None:
    order = {"file": holiday.name, "widths": [100]}
    first = run("resize", order)
    data = (home / "thumbnails/holiday-100.jpg").read_bytes()
    second = run("resize", order)
    assert first["result"] == second["result"]
    assert (home / "thumbnails/holiday-100.jpg").read_bytes() == data


def test_transparency_stays_and_nothing_grows(run: Run, home: Path, pictures: Path) -> None:
    Image.new("RGBA", (64, 1), (255, 0, 0, 128)).save(pictures / "line.png")
    task = run("resize", {"file": "line.png", "widths": [16, 640]})
    assert [(copy["width"], copy["height"]) for copy in task["result"]] == [(16, 1), (64, 1)]
    with Image.open(home / "thumbnails/line-16.png") as picture:
        assert picture.getpixel((3, 0)) == (255, 0, 0, 128)


def png(width: int, height: int) -> bytes:
    """A valid header; the pixels are a few bytes, that unpack to none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("text.jpg", b"this is not a picture", "cannot identify"),
        ("empty.png", b"", "cannot identify"),
        ("bomb.png", png(9_000, 9_000), "decompression bomb"),
        ("monster.png", png(60_000, 60_000), "decompression bomb"),
        ("broken.png", png(100, 100), "truncated"),
        ("picture.gif", b"GIF89a\x01\x00\x01\x00\x00\x00\x00;", "cannot identify"),
        ("half.jpg", None, "truncated"),
    ],
    ids=["text", "empty", "bomb", "monster", "broken", "gif", "half"],
)
def test_what_is_no_picture_is_rejected(
    run: Run, home: Path, holiday: Path, pictures: Path, name: str, content: bytes | None, why: str
) -> None:
    (pictures / name).write_bytes(holiday.read_bytes()[:9_000] if content is None else content)
    task = run("resize", {"file": name, "widths": [10]})
    assert (task["status"], task["attempt"], task["error"]["type"]) == ("failed", 1, "Reject"), task["error"]
    assert task["error"]["message"].startswith(f"{name} is not a picture that we take")
    assert why in task["error"]["message"]
    assert not list((home / "thumbnails").glob(f"*{Path(name).stem}*"))


def test_a_failure_while_writing_leaves_what_was_there(tmp_path: Path) -> None:
    from examples import pictures

    target = tmp_path / "old.jpg"
    target.write_bytes(b"old")
    with pytest.raises(OSError, match="RGBA"):  # there is no transparency in JPEG
        pictures.save(Image.new("RGBA", (8, 8)), "JPEG", target, Context())
    assert [path.name for path in tmp_path.iterdir()] == ["old.jpg"]
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize(
    "payload",
    [
        None,
        {"file": "holiday.jpg"},
        {"file": "../../../etc/passwd", "widths": [10]},
        {"file": "/etc/passwd", "widths": [10]},
        {"file": "holiday.jpg", "widths": []},
        {"file": "holiday.jpg", "widths": [0]},
        {"file": "holiday.jpg", "widths": [True, 1.5]},
        {"file": "holiday.jpg", "widths": 10},
        {"file": "a\0b", "widths": [10]},
    ],
)
def test_what_is_no_order_is_rejected(run: Run, holiday: Path, payload: object) -> None:
    task = run("resize", payload)
    assert (task["status"], task["attempt"], task["error"]["type"]) == ("failed", 1, "Reject"), task["error"]


def test_a_picture_that_is_not_there_yet(run: Run) -> None:
    task: Any = run("resize", {"file": "late.jpg", "widths": [10]}, max_attempts=2, backoff=0.1)
    assert [attempt["error"]["type"] for attempt in task["attempts"]] == ["FileNotFoundError"] * 2

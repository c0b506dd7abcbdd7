"""Make smaller copies of a picture, several widths in one task."""

import os
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from tq_node import Context, Reject, task

SOURCES = Path(os.environ.get("PICTURES_DIR", "pictures")).resolve()
RESULTS = Path(os.environ.get("THUMBNAILS_DIR", "thumbnails")).resolve()
FORMATS = {"JPEG": ".jpg", "PNG": ".png"}
BYTES_MAX = 50_000_000

# Some kilobytes can unpack to gigabytes: more pixels than this are an error before that.
Image.MAX_IMAGE_PIXELS = 50_000_000
warnings.simplefilter("error", Image.DecompressionBombWarning)


@task("resize", timeout=120, max_attempts=3, backoff=30, queue="pictures")
def resize(payload: Any, context: Context) -> list[dict[str, Any]]:
    source, widths = check(payload)
    picture, kind = decode(source)
    copies = []
    for number, asked in enumerate(widths, start=1):
        width = min(asked, picture.width)  # never larger than it was
        height = max(1, round(picture.height * width / picture.width))
        target = RESULTS / f"{source.stem}-{asked}{FORMATS[kind]}"
        save(picture.resize((width, height), Image.Resampling.LANCZOS), kind, target, context)
        copies.append({"file": target.name, "width": width, "height": height})
        context.progress(number / len(widths), target.name)
    return copies


def check(payload: Any) -> tuple[Path, list[int]]:
    try:
        source = (SOURCES / payload["file"]).resolve()
        widths = list(payload["widths"])
    except (KeyError, TypeError, ValueError) as why:
        raise Reject(f"the payload needs a file and widths: {why!r}") from None
    if not source.is_relative_to(SOURCES):
        raise Reject(f"{payload['file']!r} is not among the pictures")
    if not 1 <= len(widths) <= 20 or not all(type(width) is int and 1 <= width <= 10_000 for width in widths):
        raise Reject("widths are 1 to 20 whole numbers up to 10000")
    return source, widths


def decode(source: Path) -> tuple[Image.Image, str]:
    """Upright, in RGB or RGBA, without the metadata: it may say where the picture was taken."""
    if source.stat().st_size > BYTES_MAX:
        raise Reject(f"{source.name} has more than {BYTES_MAX} bytes")
    data = source.read_bytes()  # what fails up to here may go better next time; what fails below never will
    try:
        with Image.open(BytesIO(data), formats=list(FORMATS)) as opened:
            kind = opened.format
            picture = ImageOps.exif_transpose(opened).convert("RGBA" if opened.has_transparency_data else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as why:
        raise Reject(f"{source.name} is not a picture that we take: {why}") from None
    assert kind is not None
    picture.info.clear()
    return picture, kind


def save(picture: Image.Image, kind: str, target: Path, context: Context) -> None:
    """Its name has nothing or a whole file, also after a crash, also with two attempts at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    token = context.token
    part = target.with_name(f".{target.name}.{context.task_id}.{token.epoch}-{token.sequence}.part")
    try:
        with part.open("wb") as file:
            picture.save(file, kind, optimize=True)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)

"""Import a CSV or NDJSON file of products into a database, chunk by chunk."""

import csv
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from tq_node import Context, Reject, task

SOURCES = Path(os.environ.get("IMPORT_DIR", "incoming")).resolve()
DATABASE = Path(os.environ.get("PRODUCTS_DB", "products.sqlite3")).resolve()
CHUNK_RECORDS = 500
BAD_SHOWN = 20

SCHEMA = """
CREATE TABLE IF NOT EXISTS products (sku TEXT PRIMARY KEY, name TEXT NOT NULL, cents INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS imports (
    task_id TEXT PRIMARY KEY, file TEXT, epoch INTEGER, sequence INTEGER, offset INTEGER, good INTEGER, bad INTEGER
);
"""
CLAIM = """
INSERT INTO imports VALUES (:task_id, :file, :epoch, :sequence, 0, 0, 0)
    ON CONFLICT (task_id) DO UPDATE SET epoch = :epoch, sequence = :sequence
    WHERE (epoch, sequence) < (:epoch, :sequence)
"""
PLACE = "SELECT file, offset, good, bad FROM imports WHERE task_id = :task_id"
ADVANCE = """
UPDATE imports SET offset = :offset, good = :good, bad = :bad
    WHERE task_id = :task_id AND (epoch, sequence) = (:epoch, :sequence)
"""
UPSERT = """
INSERT INTO products VALUES (?, ?, ?)
    ON CONFLICT (sku) DO UPDATE SET name = excluded.name, cents = excluded.cents
"""

Record = tuple[str, str, int] | ValueError
"""A product, or why it is none."""


@task("import-products", timeout=3600, max_attempts=5, backoff=30, queue="imports")
def import_products(payload: Any, context: Context) -> dict[str, int]:
    source, read = check(payload)
    me = {"task_id": context.task_id, "epoch": context.token.epoch, "sequence": context.token.sequence}
    with source.open("rb") as file, closing(sqlite3.connect(DATABASE, timeout=30)) as db:
        size = os.fstat(file.fileno()).st_size
        offset, good, bad = claim(db, me, f"{source.name}, {size} bytes")
        if offset:
            context.log(f"goes on at byte {offset} of {size}; done before: {good} good, {bad} bad")
        lines = Lines(file)
        records = read(lines, offset)
        while chunk := list(islice(records, CHUNK_RECORDS)):
            products = []
            for record in chunk:
                if not isinstance(record, ValueError):
                    good += 1
                    products.append(record)
                else:
                    bad += 1
                    if bad <= BAD_SHOWN:
                        context.log(f"record {good + bad}: {record}")
            with db:  # one transaction: the products, and how far we are
                execute_mine(db, ADVANCE, {**me, "offset": lines.offset, "good": good, "bad": bad})
                db.executemany(UPSERT, products)
            context.progress(lines.offset / size, f"{good} good, {bad} bad")
    return {"good": good, "bad": bad}


def claim(db: sqlite3.Connection, me: dict[str, Any], file: str) -> tuple[int, int, int]:
    """Make the import this attempt's own; returns how far others came: offset, good, bad."""
    db.executescript(SCHEMA)
    with db:
        execute_mine(db, CLAIM, {**me, "file": file})
        known, offset, good, bad = db.execute(PLACE, me).fetchone()
    if known != file:
        raise Reject(f"not the file that the import began with, {known}, but {file}")
    return offset, good, bad


def execute_mine(db: sqlite3.Connection, statement: str, values: dict[str, Any]) -> None:
    """Changes the import's row unless a later token has it: then this attempt is a straggler."""
    if not db.execute(statement, values).rowcount:
        raise RuntimeError("a later attempt has this import")


def check(payload: Any) -> tuple[Path, "Reader"]:
    try:
        source = (SOURCES / payload["file"]).resolve()
        read = READERS[source.suffix]
    except (KeyError, TypeError, ValueError) as why:
        raise Reject(f"the payload needs a file, .csv or .ndjson: {why!r}") from None
    if not source.is_relative_to(SOURCES):
        raise Reject(f"{payload['file']!r} is not among the files to import")
    return source, read


class Lines:
    """The lines of a file, and the offset behind the last one read."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.offset = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if not (line := self.file.readline()):
            raise StopIteration
        self.offset += len(line)
        return line.decode("utf-8-sig" if self.offset == len(line) else "utf-8", "replace")

    def skip_to(self, offset: int) -> None:
        if offset > self.offset:
            self.offset = self.file.seek(offset)


def read_csv(lines: Lines, offset: int) -> Iterator[Record]:
    reader = csv.DictReader(lines, strict=True)
    if not {"sku", "name", "price"} <= set(reader.fieldnames or []):  # this reads the first line
        raise Reject("the first line must name sku, name and price")
    lines.skip_to(offset)
    while True:
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as why:  # a quote that never ends, say; the reader goes on with the next line
            yield ValueError(why)
        else:
            yield product(record)


def read_ndjson(lines: Lines, offset: int) -> Iterator[Record]:
    lines.skip_to(offset)
    for line in lines:
        if line.strip():
            try:
                yield product(json.loads(line, parse_float=str))
            except (ValueError, RecursionError) as why:
                yield ValueError(f"no JSON: {why}")


def product(record: Any) -> Record:
    try:
        sku, name, price = record["sku"].strip(), record["name"].strip(), str(record["price"])
        cents = Decimal(price) * 100
        is_text = "\ufffd" not in (sku + name).encode().decode()  # what was no UTF-8 has become this character
        is_money = 0 <= cents < 10**12 and cents % 1 == 0
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as why:
        return ValueError(f"{why!r} in {record!r:.200}")
    if not (sku and name and is_text and is_money and None not in record):  # None: cells beyond the last column
        return ValueError(f"no product: {record!r:.200}")
    return sku, name, int(cents)


Reader = Callable[[Lines, int], Iterator[Record]]
READERS: Mapping[str, Reader] = {".csv": read_csv, ".ndjson": read_ndjson}

"""Make a report of sales from a database: rows as CSV, pages as PDF."""

import csv
import os
import sqlite3
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

from reportlab.lib.pagesizes import A4
from reportlab.pdfgen.canvas import Canvas

from tq_node import Context, Reject, Retry, task

DATABASE = Path(os.environ.get("SALES_DB", "sales.sqlite3")).resolve()
REPORTS = Path(os.environ.get("REPORTS_DIR", "reports")).resolve()
PAGE_ROWS = 40

COUNT = "SELECT count(*), coalesce(sum(cents), 0) FROM sales WHERE day BETWEEN ? AND ?"
ROWS = "SELECT day, region, product, cents FROM sales WHERE day BETWEEN ? AND ? ORDER BY day, region, product, cents"


@task("sales-report", timeout=600, max_attempts=5, queue="reports")
def make_report(payload: Any, context: Context) -> dict[str, Any]:
    try:
        first, last = (date.fromisoformat(payload[name]).isoformat() for name in ("from", "to"))
    except (KeyError, TypeError, ValueError) as why:
        raise Reject(f"the payload needs two dates, from and to: {why!r}") from None
    REPORTS.mkdir(parents=True, exist_ok=True)
    targets = [REPORTS / f"sales_{first}_{last}{suffix}" for suffix in (".csv", ".pdf")]
    mark = f"{context.task_id}.{context.token.epoch}-{context.token.sequence}.part"
    parts = [target.with_name(f".{target.name}.{mark}") for target in targets]
    try:
        facts = write(first, last, parts, context)
        for part, target in zip(parts, targets, strict=True):
            part.replace(target)  # in one step: whoever opens it gets the old file or the new one
    except sqlite3.OperationalError as why:  # it is locked, or not there yet
        raise Retry(30, f"{DATABASE.name}: {why}") from None
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    return {"csv": targets[0].name, "pdf": targets[1].name, **facts}


def write(first: str, last: str, parts: list[Path], context: Context) -> dict[str, int]:
    """Both files, page by page, so that only a page of rows is in memory at a time."""
    csv_path, pdf_path = parts
    with (
        closing(sqlite3.connect(f"{DATABASE.as_uri()}?mode=ro", uri=True, isolation_level=None)) as db,
        csv_path.open("w", newline="", encoding="utf-8") as csv_file,
        pdf_path.open("wb") as pdf_file,
    ):
        db.execute("BEGIN")  # the count and the rows are of one moment
        count, total = db.execute(COUNT, (first, last)).fetchone()
        rows = db.execute(ROWS, (first, last))
        pages = max(1, -(-count // PAGE_ROWS))
        table = csv.writer(csv_file)
        table.writerow(["day", "region", "product", "cents"])
        pdf = Canvas(pdf_file, pagesize=A4, invariant=True)
        for page in range(1, pages + 1):
            if context.cancelled:
                raise InterruptedError("cancelled")
            some = rows.fetchmany(PAGE_ROWS)
            table.writerows(some)
            draw_page(pdf, f"Sales from {first} to {last}: {total / 100:,.2f}", some, f"page {page} of {pages}")
            context.progress(page / pages, f"page {page} of {pages}")
        pdf.save()
        for file in (csv_file, pdf_file):
            file.flush()
            os.fsync(file.fileno())
    return {"rows": count, "pages": pages, "cents": total}


def draw_page(pdf: Canvas, title: str, rows: list[tuple[str, str, str, int]], foot: str) -> None:
    pdf.setFont("Helvetica-Bold", 14)
    pdf.drawString(60, 790, title)
    pdf.setFont("Helvetica", 10)
    for number, (day, region, product, cents) in enumerate(rows):
        y = 760 - 17 * number
        pdf.drawString(60, y, day)
        pdf.drawString(140, y, region)
        pdf.drawString(260, y, product)
        pdf.drawRightString(535, y, f"{cents / 100:,.2f}")
    pdf.drawString(60, 40, foot)
    pdf.showPage()

"""Write docs/results.md from the records in benchmarks/results.

python -m benchmarks.report            writes the page
python -m benchmarks.report --check    exits with 1 if the page is not what the records give

Each row of the page names what was measured, the figure, the command, the machine and the commit of
the record. A benchmark writes its record itself; a figure on the page is never typed.
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks.reliability import tables
from benchmarks.report.figures import Record
from benchmarks.report.rows import AREAS, Row

RESULTS = Path(__file__).parents[1] / "results"
PAGE = Path(__file__).parents[2] / "docs" / "results.md"

INTRODUCTION = """# Results

`python -m benchmarks.report` (or `make results`) writes this page from the records in
[benchmarks/results](../benchmarks/results). Each command writes its own record. The last column
links the record and gives its commit: the one that was checked out, or, for records of before
2026-11-28, the one that added the record. `fer2013.parquet`, CLIPS and `corpus` are not part of
the repository: the first lines of each benchmark say what it reads.
"""


def machine(of: Record) -> str:
    """GPU, processor, cores and load of a record's machine, as one phrase."""
    words = [of["gpu"]] if of.get("gpu") else []
    words.append(of["processor"])
    if cores := of.get("cores"):
        words.append(f"{cores} cores")
    if (load := of.get("load_average")) is not None:
        words.append(f"load {load:g}")
    return ", ".join(words)


def line(row: Row, records: Record) -> str:
    """A row of Markdown."""
    record = records[row.record]
    record = dict(record[row.part] if row.part else record)
    origin = record.pop("recorded")
    cells = (
        row.what,
        row.figure(record),
        f"`python -m benchmarks.{row.command}`",
        machine(origin["machine"]),
        f"[{origin['commit']}](../benchmarks/results/{row.record}.json)",
    )
    return f"| {' | '.join(cells)} |"


def page() -> str:
    """The whole page."""
    records = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
    used = {row.record for rows in AREAS.values() for row in rows}
    if unknown := records.keys() - used:
        raise SystemExit(f"benchmarks/report/rows.py has no row for {sorted(unknown)}: add one")
    lines = [INTRODUCTION]
    missing = used - records.keys()
    for area, rows in AREAS.items():
        there = [row for row in rows if row.record in records]
        known = [row for row in there if not row.part or row.part in records[row.record]]
        missing |= {f"{row.record} ({row.part})" for row in there if row not in known}
        lines += [
            f"## {area}",
            "| what | figure | command | machine | record |",
            "|---|---|---|---|---|",
            *(line(row, records) for row in known),
            "",
        ]
    if missing:
        lines += [f"Not recorded: {', '.join(sorted(missing))}.", ""]
    lines += ["## Reliability in detail", "", *tables.tables(records["reliability"])]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if the page differs")
    options = parser.parse_args()
    if not options.check:
        PAGE.write_text(page())
    elif not PAGE.exists() or PAGE.read_text() != page():
        sys.exit(f"{PAGE} is not what the records give: run `python -m benchmarks.report`")


if __name__ == "__main__":
    main()

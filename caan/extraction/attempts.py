"""Tries at a segment whose worker or decoding child died, kept in files beside the plan."""

from caan import storage
from caan.errors import Crashed, VideoError


class AttemptLog:
    """Count tries in files, so that a video on which workers or children die is given up.

    A try writes `<segment_id>.<n>` and removes it at its end. Files that are left belong to tries
    whose worker died. A try whose child died writes `<segment_id>.<n>.failed` with status and
    error, which counts for the whole video. Both stay after the run.
    """

    def __init__(self, folder: str, max_attempts: int) -> None:
        self.folder = folder
        self.max_attempts = max_attempts

    def begin(self, segment_id: str) -> str:
        """Note a try; return its name.

        Raises:
            VideoError: no try is left; with the status and text of the last failure.
        """
        names = storage.list_names(self.folder)
        video = segment_id.rpartition("-")[0]
        failed = [n for n in names if n.endswith(".failed") and n.rpartition("-")[0] == video]
        own = {n.removesuffix(".failed") for n in names if n.startswith(f"{segment_id}.")}
        if len(failed) >= self.max_attempts:
            said = storage.read_json(storage.join(self.folder, max(failed)))
            error = VideoError(said["error"])
            error.status = said["status"]
            raise error
        if len(own) >= self.max_attempts:
            raise Crashed(f"given up: its worker died in each of {self.max_attempts} tries")
        free = (f"{segment_id}.{number}" for number in range(self.max_attempts))
        name = next(name for name in free if name not in own)
        storage.write_bytes(storage.join(self.folder, name), b"")
        return name

    def fail(self, name: str, error: VideoError) -> None:
        """Note that the child died in this try."""
        said = {"status": error.status, "error": str(error)}
        storage.write_json(storage.join(self.folder, f"{name}.failed"), said)
        self.end(name)

    def end(self, name: str) -> None:
        """Forget a try that ended."""
        storage.delete(storage.join(self.folder, name))

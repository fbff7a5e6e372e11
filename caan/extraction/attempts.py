"""Which tries at a segment cost a worker or a decoding child: kept in files beside the plan."""

from caan import storage
from caan.errors import Crashed, VideoError


class AttemptLog:
    """Counts tries in files, so that a video that costs workers or children is given up.

    A try leaves `<segment_id>.<n>`, which is removed when it came to its end: what is left are
    tries that took the worker with them. A try that cost its child leaves `<segment_id>.<n>.failed`
    with status and error, which counts for the whole video. Both outlive the run.
    """

    def __init__(self, folder: str, max_attempts: int) -> None:
        self.folder = folder
        self.max_attempts = max_attempts

    def begin(self, segment_id: str) -> str:
        """Note a try; gives its name.

        Raises:
            VideoError: all tries are used up; with the status and text of the last failure.
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
        """The try cost the child."""
        said = {"status": error.status, "error": str(error)}
        storage.write_json(storage.join(self.folder, f"{name}.failed"), said)
        self.end(name)

    def end(self, name: str) -> None:
        """The try came to its end."""
        storage.delete(storage.join(self.folder, name))

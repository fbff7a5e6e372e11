"""Files on local paths and on s3://: `from caan import storage`, then `storage.read_table(...)`."""

from caan.storage.failures import explained
from caan.storage.files import (
    StoredFile,
    check_writable,
    copy_folder,
    create_bytes,
    delete,
    exists,
    is_folder,
    list_files,
    list_names,
    local_folder,
    read_bytes,
    read_json,
    read_table,
    stat,
    write_bytes,
    write_json,
    write_table,
)
from caan.storage.objects import fetch, open_ranges, spooled
from caan.storage.paths import filesystem, is_s3, join, normalise

__all__ = [
    "StoredFile",
    "check_writable",
    "copy_folder",
    "create_bytes",
    "delete",
    "exists",
    "explained",
    "fetch",
    "filesystem",
    "is_folder",
    "is_s3",
    "join",
    "list_files",
    "list_names",
    "local_folder",
    "normalise",
    "open_ranges",
    "read_bytes",
    "read_json",
    "read_table",
    "spooled",
    "stat",
    "write_bytes",
    "write_json",
    "write_table",
]

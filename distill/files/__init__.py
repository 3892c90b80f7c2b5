"""Files and folders: there whole or not at all, each with one writer, and none removed that was not made here.

May import dar.checksums, within functions, and errors.
"""

from distill.files.folders import claimed, locked, new_folder, resolved
from distill.files.whole import (
    read_json,
    replace_folder,
    seal_folder,
    temporary_name,
    write_bytes,
    write_folder,
    write_text,
)

__all__ = [
    "claimed",
    "locked",
    "new_folder",
    "read_json",
    "replace_folder",
    "resolved",
    "seal_folder",
    "temporary_name",
    "write_bytes",
    "write_folder",
    "write_text",
]

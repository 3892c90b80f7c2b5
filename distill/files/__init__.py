"""Files and folders: there whole or not at all, each with one writer, and none removed that was not made here.

May import dar.checksums, within functions, and errors.
"""

from distill.files.folders import claimed, locked, new_folder, resolved
from distill.files.whole import (
    check_whole,
    read_json,
    replace_folder,
    say_unchecked,
    seal_files,
    seal_folder,
    temporary_name,
    write_bytes,
    write_files,
    write_folder,
    write_text,
)

__all__ = [
    "check_whole",
    "claimed",
    "locked",
    "new_folder",
    "read_json",
    "replace_folder",
    "resolved",
    "say_unchecked",
    "seal_files",
    "seal_folder",
    "temporary_name",
    "write_bytes",
    "write_files",
    "write_folder",
    "write_text",
]

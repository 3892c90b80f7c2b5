"""A folder to the hub: only where the user says so."""

from __future__ import annotations

from pathlib import Path

from distill.errors import UserError


def check_name(repo: str) -> None:
    """Raises: UserError for what is no NAMESPACE/NAME."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        if repo.count("/") != 1:
            raise HFValidationError(repo)
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"--push {repo!r} must be NAMESPACE/NAME, as the hub names a repository") from error


def push_folder(folder: Path, repo: str, *, public: bool) -> str:
    """Upload a folder as a repository, a new one private unless `public`; one that is there keeps what it is.

    Returns: its address. Raises: UserError, which says how to go on, where the hub refuses or cannot be reached.
    """
    from huggingface_hub import create_repo, upload_folder

    try:
        address = create_repo(repo, private=not public, exist_ok=True)
        upload_folder(repo_id=repo, folder_path=str(folder), commit_message="Exported by dar-distill")
    except Exception as error:  # of the hub, of the network or of this machine, each of a library of its own
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"--push {repo}: {reason}; {folder} is written: `hf auth login`, then `hf upload {repo} {folder}`"
        ) from error
    return str(address)

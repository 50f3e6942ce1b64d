"""An exported folder on the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from draftopd.errors import DraftError


def check_repo(name: str) -> None:
    """Raises DraftError where it is no name of a repository."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise DraftError(f"push_to_hub={name} is no repository of the hub, as in me/my-drafter: {error}") from error
    if "/" not in name:
        raise DraftError(f"push_to_hub={name} names no owner: as in me/{name}")


def require_login(api: HfApi) -> None:
    """Raises DraftError where the hub cannot be reached, or does not know the user."""
    try:
        api.whoami()
    except LocalTokenNotFoundError as error:
        raise DraftError("push_to_hub needs a login: run `hf auth login`, with a token that may write") from error
    except (HTTPError, OSError) as error:
        raise DraftError(f"push_to_hub: the hub refuses the login, or cannot be reached: {_reason(error)}") from error


def push(api: HfApi, folder: Path, repo: str, *, private: bool) -> str:
    """Uploads a folder into a repository, which is made where it is missing; returns its address.

    Args:
        private: of a new repository; one that is there stays what it is, and keeps its history.

    Raises:
        DraftError: the hub refuses it; the folder stays.
    """
    try:
        url = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload a drafter of draftopd")
    except (HTTPError, OSError, ValueError) as error:
        raise DraftError(f"{folder} is written, but the hub does not take it as {repo}: {_reason(error)}") from error
    return str(url)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

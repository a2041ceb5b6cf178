"""Push an exported folder to a model hub, and check that it arrived.

The token is the one stored by the hub's own library (`studio models token`, or HF_TOKEN); it is
never stored, shown or logged here. Offline, or without a token, nothing is tried.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

from studio.errors import InputError, Unreached, is_transient
from studio.fields import knob
from studio.home import Home
from studio.job_request import Request
from studio.training.training_events import Event, Finished, Loading

REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
SENT = ("*.safetensors", "*.gguf", "*.json", "*.md", "*.model", "*.txt", "*.jinja", "Modelfile")
NOT_SENT = ("MANIFEST.json", "passport.json", "label.json", ".*")


class PushRequest(Request):
    """Upload an exported folder to the hub, with the token stored by the hub's own library."""

    kind: ClassVar[str] = "push"
    folder: str = knob("", "Folder written by an export or merge.", max_length=4000)
    repo: str = knob("", "OWNER/NAME on the hub.", title="Repository", max_length=200)
    private: bool = knob(True, "Only you can see it.", title="Private")

    def checked(self, home: Home) -> Self:
        """Return it with its folder absolute; a token must be there."""
        folder = Path(self.folder).expanduser().absolute()
        if not self.folder.strip() or not files_of(folder):
            raise InputError(
                f"{folder} has nothing to upload: export the adapter, then push the new folder."
            )
        if not REPO.fullmatch(self.repo.strip()):
            raise InputError(f'Invalid repository "{self.repo}": write OWNER/NAME.')
        token()
        return self.model_copy(update={"folder": str(folder), "repo": self.repo.strip()})

    def perform(self, home: Home, *_: Any) -> Iterator[Event]:
        """Create the repository, upload, and compare the sizes of what is there."""
        yield Loading(text=f"Uploading to {self.repo}")
        address = push(Path(self.folder), self.repo, private=self.private)
        yield Finished(adapter=self.folder, facts={"address": address})

    def outcome(self, home: Home, run_dir: Path, result: dict[str, Any]) -> dict[str, Any]:
        """Return the address of the repository."""
        return {"address": result.get("address")}


def token() -> str:
    """Return the hub's token.

    Raises:
        InputError: The studio is offline, or there is no token.
    """
    from huggingface_hub import constants, get_token

    if constants.is_offline_mode():
        raise InputError(
            "The hub cannot be reached: this studio is offline. `studio offline --off` or the "
            "System page lets it use the hub again, unless HF_HUB_OFFLINE is set outside."
        )
    if found := get_token():
        return found
    raise InputError("The hub has no token: enter one with `studio models token --token -`.")


def files_of(folder: Path) -> dict[str, int]:
    """Return the files of a folder that would be uploaded, with sizes in bytes."""
    found = {file for pattern in SENT for file in folder.glob(pattern) if file.is_file()}
    left = {file for pattern in NOT_SENT for file in folder.glob(pattern)}
    return {file.name: file.stat().st_size for file in sorted(found - left)}


def push(folder: Path, repo: str, *, private: bool = True) -> str:
    """Upload a folder's files and return the repository's address.

    Raises:
        InputError: The hub refuses, or a file is incomplete there.
        Unreached: The hub cannot be reached or is overloaded.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    wanted = files_of(folder)
    api = HfApi(token=token())
    try:
        address = str(api.create_repo(repo, private=private, exist_ok=True))
        api.upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=list(wanted),
            commit_message="Upload from Adapter Studio",
        )  # fmt: skip
        infos = api.get_paths_info(repo, list(wanted))
        there = {one.path: getattr(one, "size", None) for one in infos}
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        kind = Unreached if is_transient(error) or not status else InputError
        raise kind(_refused(repo, status)) from None
    except Exception as error:
        if not is_transient(error):
            raise
        raise Unreached(
            "The hub cannot be reached: check the network, then push again. The folder "
            "is unchanged."
        ) from None
    lost = [name for name, size in wanted.items() if there.get(name) != size]
    if lost:
        raise InputError(
            f"{', '.join(lost)} did not arrive completely in {repo}: push again to resume."
        )
    return address


def _refused(repo: str, status: int) -> str:
    why = {
        401: "the token is no longer valid: `studio models token --token -` takes another",
        403: f"the token cannot write to {repo}: create one with write access",
        404: f"this token cannot write to the owner {repo.partition('/')[0]}",
        413: "a file is too large",
    }
    reason = why.get(status, f"status {status}" if status else "no answer")
    return f"The hub refused the upload: {reason}. The folder is unchanged."

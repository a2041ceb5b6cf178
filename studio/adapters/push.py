"""Putting a folder that was exported on a model hub, and looking that it arrived.

The token is the one that the hub's own library keeps (`hf auth login`, or HF_TOKEN): it is asked
for there and never stored, shown or logged here. Offline, or without a token, nothing is tried.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

from studio.errors import InputError, Unreached, is_transient
from studio.fields import knob
from studio.home import Home
from studio.request import Request
from studio.training.events import Event, Finished, Loading

REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
# What belongs to a hub's folder; our manifest and anything hidden stay here.
SENT = ("*.safetensors", "*.gguf", "*.json", "*.md", "*.model", "*.txt", "*.jinja", "Modelfile")
KEPT = ("MANIFEST.json", "passport.json", "label.json", ".*")


class PushRequest(Request):
    """Upload an exported folder to the hub, with the token stored by the hub's own library."""

    kind: ClassVar[str] = "push"
    name: str = knob("", "Name of the job.", title="Name", max_length=120)
    folder: str = knob("", "Folder written by an export or merge.", max_length=4000)
    repo: str = knob("", "OWNER/NAME on the hub.", title="Repository", max_length=200)
    private: bool = knob(True, "Only you can see it.", title="Private")

    def checked(self, home: Home) -> Self:
        """Return the request as the queue stores it.

        Raises:
            InputError: No such folder, no such name for a repository, offline, or no token.
        """
        folder = Path(self.folder).expanduser().absolute()
        if not self.folder.strip() or not files_of(folder):
            raise InputError(
                f"{folder} holds nothing to upload: export the adapter first, then push the "
                "folder that was written."
            )
        if not REPO.fullmatch(self.repo.strip()):
            raise InputError(f'"{self.repo}" is no repository: write OWNER/NAME.')
        token()
        return self.model_copy(update={"folder": str(folder), "repo": self.repo.strip()})

    def perform(self, home: Home, *_: Any) -> Iterator[Event]:
        """Create the repository, upload, and compare the sizes of what is there."""
        started = time.monotonic()
        yield Loading(text=f"Uploading to {self.repo}")
        address = push(Path(self.folder), self.repo, private=self.private)
        seconds = time.monotonic() - started
        yield Finished(adapter=self.folder, seconds=seconds, facts={"address": address})

    def outcome(self, home: Home, run_dir: Path, result: dict[str, Any]) -> dict[str, Any]:
        """Return the address of the repository."""
        return {"address": result.get("address")}


def token() -> str:
    """Return the hub's token.

    Raises:
        InputError: We are offline, or there is none; says how to get one.
    """
    from huggingface_hub import constants, get_token

    if constants.is_offline_mode():
        raise InputError(
            "The hub cannot be reached: this studio is offline (HF_HUB_OFFLINE is set). Unset it "
            "and start the studio again to upload."
        )
    found = get_token()
    if not found:
        raise InputError(
            "There is no token for the hub: run `hf auth login` in a terminal, or set HF_TOKEN, "
            "then try again."
        )
    return found


def files_of(folder: Path) -> dict[str, int]:
    """Return what would be uploaded of a folder, with sizes in bytes."""
    if not folder.is_dir():
        return {}
    found = {file for pattern in SENT for file in folder.glob(pattern) if file.is_file()}
    kept = {file for pattern in KEPT for file in folder.glob(pattern)}
    return {file.name: file.stat().st_size for file in sorted(found - kept)}


def push(folder: Path, repo: str, *, private: bool = True) -> str:
    """Upload a folder's files and return the repository's address.

    Raises:
        InputError: The hub refuses, or something did not arrive whole.
        Unreached: It does not answer, or has too much to do.
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
            f"The hub cannot be reached ({type(error).__name__}): check the network, then push "
            "again. The folder stays as it is."
        ) from None
    lost = [name for name, size in wanted.items() if there.get(name) != size]
    if lost:
        raise InputError(
            f"{', '.join(lost)} did not arrive whole in {repo}: push again, it goes on where it "
            "was."
        )
    return address


def _refused(repo: str, status: int) -> str:
    why = {
        401: "the token is not valid any more: run `hf auth login` again",
        403: f"the token may not write to {repo}: make one with write access",
        404: f"there is no owner {repo.partition('/')[0]} that this token can write to",
        413: "a file is larger than it takes",
    }
    reason = why.get(status, f"it answers {status}" if status else "it gives no answer")
    return f"The hub refused the upload: {reason}. The folder stays as it is."

"""A window of its own: pywebview or the browser's app mode, and the entry in the system's menu.

Either runs in a process of its own on a profile of this home, so that it lives as long as the
window.
"""

import importlib.util
import os
import plistlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from studio.errors import ServeError
from ui.page_frame import FAVICON

NAME = "Adapter Studio"
ABOUT = "Fine-tune language models on this machine"
BROWSERS = (
    "google-chrome", "google-chrome-stable", "chromium", "chromium-browser", "microsoft-edge",
    "brave-browser", "chrome", "msedge",
)  # fmt: skip
PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
)


APP_MODE = (
    "--app={address}", "--user-data-dir={profile}", "--no-first-run", "--no-default-browser-check",
)  # fmt: skip
VIEW = ("-m", "ui.window", "{address}", "{profile}")


def find_window() -> list[str]:
    """Return the command of a window: pywebview where it is installed, else a browser's app mode.

    `STUDIO_BROWSER` names a browser to take in any case.

    Raises:
        ServeError: There is neither.
    """
    if not os.environ.get("STUDIO_BROWSER") and importlib.util.find_spec("webview"):
        return [sys.executable, *VIEW]
    return [find_browser(), *APP_MODE]


def find_browser() -> str:
    """Return a browser that has an app mode: `STUDIO_BROWSER`, else one of the usual ones.

    Raises:
        ServeError: There is none.
    """
    known = [os.environ.get("STUDIO_BROWSER", ""), *map(shutil.which, BROWSERS), *PLACES]
    for one in known:
        if one and Path(one).is_file():
            return one
    raise ServeError(
        "No Chrome, Chromium or Edge was found to open a window with: install one, or "
        "`pip install pywebview`, set STUDIO_BROWSER to a browser, or leave --window out."
    )


def open_window(window: Sequence[str], address: str, profile: Path) -> subprocess.Popen[bytes]:
    """Open the page in a window without tabs; the process ends when it is closed."""
    program, *rest = window
    command = [program, *(one.format(address=address, profile=profile) for one in rest)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def show_view(address: str, profile: Path) -> None:
    """Show the page in a window of pywebview and return when it is closed."""
    import webview

    webview.settings["ALLOW_DOWNLOADS"] = True  # reports, charts and datasets are saved
    webview.create_window(NAME, address, width=1280, height=860, text_select=True, zoomable=True)
    webview.start(private_mode=False, storage_path=str(profile))


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the entry in the system's menu."""

    path: Path
    text: str
    is_program: bool = False


def menu_entry(
    system: str, command: Sequence[str], user: Path, variables: Mapping[str, str]
) -> list[Entry]:
    """Return the files that put the studio into the menu of a system.

    Args:
        system: As `sys.platform` names it.
        command: The program and its arguments.
        user: The user's own folder.
        variables: The environment, for the folders it names.
    """
    if system == "win32":
        roaming = Path(variables.get("APPDATA") or user / "AppData" / "Roaming")
        words = " ".join(f'"{word}"' for word in command).replace("%", "%%")
        menu = roaming / "Microsoft" / "Windows" / "Start Menu" / "Programs"
        return [Entry(menu / f"{NAME}.cmd", f'@chcp 65001 >nul\r\n@start "" {words}\r\n')]
    if system == "darwin":
        bundle = user / "Applications" / f"{NAME}.app" / "Contents"
        about = {
            "CFBundleName": NAME, "CFBundleExecutable": "studio", "CFBundlePackageType": "APPL",
            "CFBundleIdentifier": "org.adapter-studio.studio",
        }  # fmt: skip
        return [
            Entry(bundle / "MacOS" / "studio", f"#!/bin/sh\nexec {shlex.join(command)}\n", True),
            Entry(bundle / "Info.plist", plistlib.dumps(about).decode()),
        ]
    share = Path(variables.get("XDG_DATA_HOME") or user / ".local" / "share")
    icon = share / "icons" / "hicolor" / "scalable" / "apps" / "adapter-studio.svg"
    lines = [
        "[Desktop Entry]", "Type=Application", f"Name={NAME}", f"Comment={ABOUT}",
        f"Exec={' '.join(map(_quoted, command))}", "Icon=adapter-studio", "Terminal=false",
        "Categories=Development;Science;",
    ]  # fmt: skip
    return [
        Entry(share / "applications" / "adapter-studio.desktop", "\n".join([*lines, ""])),
        Entry(icon, FAVICON),
    ]


def _quoted(word: str) -> str:
    """Return an argument as `Exec=` reads it: the string's own escapes, then those of the line."""
    for special in '\\"`$':
        word = word.replace(special, f"\\{special}")
    return '"' + word.replace("\\", "\\\\").replace("%", "%%") + '"'


def write_entry(entries: Sequence[Entry]) -> None:
    """Write the files of the window's entry in the system's menu.

    Raises:
        ServeError: A file cannot be written.
    """
    for one in entries:
        try:
            one.path.parent.mkdir(parents=True, exist_ok=True)
            one.path.write_text(one.text, encoding="utf-8", newline="")
            if one.is_program:
                one.path.chmod(0o755)
        except OSError as error:
            raise ServeError(f"{one.path} cannot be written ({error.strerror}).") from None


def remove_entry(entries: Sequence[Entry]) -> list[Path]:
    """Delete the window's menu entry, its files and bundle; return the files that were there.

    Raises:
        ServeError: One cannot be deleted.
    """
    gone = [one.path for one in entries if one.path.is_file()]
    try:
        for path in gone:
            path.unlink()
        for bundle in {up for path in gone for up in path.parents if up.name == f"{NAME}.app"}:
            shutil.rmtree(bundle)
    except OSError as error:
        raise ServeError(f"{error.filename} cannot be deleted ({error.strerror}).") from None
    return gone


if __name__ == "__main__":
    show_view(sys.argv[1], Path(sys.argv[2]))

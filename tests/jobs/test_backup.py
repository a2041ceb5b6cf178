"""A backup of a home in use comes back as it was, or is refused and changes nothing."""

import io
import json
import os
import shutil
import sqlite3
import stat
import tarfile
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from jobs import backup as backups
from jobs import restore as restoring
from jobs.backup import MANIFEST, backup, copy_daily
from jobs.claims import Claim
from jobs.compare_tables import Recipes, Votes
from jobs.database import daily_copies
from jobs.job_queue import JobStore
from jobs.processes import FileLock
from jobs.restore import restore
from jobs.run_curves import Progress
from studio.errors import DiskFull, HomeError
from studio.home import Home, is_whole, open_home, publishing
from studio.models import model_list
from tests.jobs.conftest import a_spec, begin, run_one, start_supervisor, supervising, until


def filled(store: JobStore) -> Claim:
    """One run that ended, one under way with a checkpoint, one waiting."""
    store.submit(a_spec(name="done"))
    run_one(store)
    store.submit(a_spec(name="under way", steps=6))
    store.submit(a_spec(name="waits", steps=2))
    claim = begin(store)
    folder = store.home.run(claim.job) / "checkpoints" / "step-00000003"
    with publishing(folder) as temporary:
        (temporary / "state.json").write_text('{"step": 3}')
    rows = [("loss", step, 1.0 / step, 0.0) for step in range(1, 4)]
    store.claims.report(
        claim,
        Progress(metrics=rows, step=3, checkpoints=[(3, str(folder), None)],
                 result={"adapter": str(store.home.run(1) / "adapter")}),
    )  # fmt: skip
    (store.home.adapters / "mine").mkdir()
    (store.home.adapters / "mine" / "adapter.safetensors").write_bytes(os.urandom(5000))
    (store.home.state / "secrets").mkdir()
    (store.home.state / "secrets" / "webhook").write_text("https://s3cret")
    return claim


def test_a_folder_on_another_disk_and_any_name_are_kept(store, tmp_path):
    (tmp_path / "large").mkdir()
    store.home.models.rmdir() if store.home.models.exists() else None
    store.home.models.symlink_to(tmp_path / "large")
    (tmp_path / "large" / "merged").write_text("weights")
    (store.home.adapters / "working").mkdir()
    (store.home.adapters / "working" / "file").write_text("mine")

    backup(store.home, tmp_path / "home.tar")
    restore(tmp_path / "elsewhere", tmp_path / "home.tar")
    found = tmp_path / "elsewhere"
    assert (found / "models" / "merged").read_text() == "weights"
    assert (found / "adapters" / "working" / "file").read_text() == "mine"


def test_a_mount_point_or_a_folder_without_rights_is_a_sentence(store, tmp_path, monkeypatch):
    backup(store.home, tmp_path / "home.tar")
    with monkeypatch.context() as patch, pytest.raises(HomeError, match="mount point .* --home"):
        patch.setattr("os.path.ismount", lambda path: True)
        restore(tmp_path / "elsewhere", tmp_path / "home.tar")
    (tmp_path / "file").touch()
    with pytest.raises(HomeError, match="Nothing can be written"):
        restore(tmp_path / "file" / "home", tmp_path / "home.tar")


def test_a_home_comes_back_elsewhere_and_goes_on(store, tmp_path):
    claim = filled(store)
    file = tmp_path / "home.tar"
    done = backup(store.home, file)
    assert done["files"] >= 4 and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert b"s3cret" not in file.read_bytes()
    target = tmp_path / "elsewhere"
    assert restore(target, file)["before"] is None
    home = open_home(target)
    again = JobStore(home)
    assert [job.name for job in again.list()] == ["waits", "under way", "done"]
    (point,) = again.checkpoints(claim.job)
    assert point["path"].startswith(str(target)) and is_whole(Path(point["path"]))
    assert again.get(claim.job).result["adapter"].startswith(str(target))
    made = "adapters/mine/adapter.safetensors"
    assert (target / made).read_bytes() == (store.home.path / made).read_bytes()
    with supervising(home):  # the process that ran it lives, but it is not of this home
        until(lambda: again.counts() == {"succeeded": 3})
    assert again.attempts(claim.job)[1]["from_step"] == 3
    assert [a["outcome"] for a in again.attempts(claim.job)] == ["interrupted", "succeeded"]
    assert store.get(claim.job).state == "running", "the home itself is untouched"
    again.close()


def test_a_backup_under_load_is_whole_every_time(store, tmp_path):
    store.submit(a_spec())
    claim = begin(store)
    log, done = store.home.run(1) / "log.txt", threading.Event()
    log.parent.mkdir(parents=True)

    def write() -> None:
        step = 0
        while not done.is_set():
            rows = [("loss", step + n, 1.0, 0.0) for n in range(20)]
            store.claims.report(claim, Progress(metrics=rows, step=step))
            with log.open("a") as file:
                file.write("line\n" * 200)
            step += 20

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(3):
            backup(store.home, tmp_path / f"{number}.tar")
    finally:
        done.set()
        writer.join()
    for number in range(3):
        restore(tmp_path / f"home-{number}", tmp_path / f"{number}.tar")
        connection = sqlite3.connect(tmp_path / f"home-{number}" / "studio.db")
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        ((low, high, count),) = connection.execute(
            "SELECT COALESCE(min(step), 0), COALESCE(max(step), -1), count(*) FROM metrics"
        )
        assert count == high - low + 1 and count % 20 == 0, "whole reports only"
        connection.close()


def test_what_was_there_before_is_moved_aside(store, tmp_path):
    filled(store)
    file = tmp_path / "home.tar"
    backup(store.home, file)
    store.submit(a_spec(name="later"))
    store.close()
    done = restore(store.home.path, file)
    kept = JobStore(Home(Path(done["before"])))
    assert kept.get("later").name == "later"
    kept.close()
    with pytest.raises(HomeError, match="exists already"):
        backup(store.home, file)
    with pytest.raises(HomeError, match="inside the home"):
        backup(store.home, store.home.path / "runs" / "b.tar")


def test_a_home_in_use_is_not_overwritten(home, tmp_path):
    JobStore(home).close()
    backup(home, tmp_path / "b.tar")
    child = start_supervisor(home)
    try:
        with pytest.raises(HomeError, match="studio stop"):
            restore(home.path, tmp_path / "b.tar")
    finally:
        child.terminate()
        child.wait(timeout=30)


def test_a_home_with_an_open_page_is_not_overwritten(store, tmp_path):
    backup(store.home, tmp_path / "b.tar")
    store.announce("web")
    for file in (tmp_path / "b.tar", store.home.database):
        with pytest.raises(HomeError, match="studio stop"):
            restore(store.home.path, file)


def tar_of(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for info, body in members:
            info.size = len(body) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(body))
    return path


def named(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


HOSTILE = [
    named("../escape"), named("/etc/escape"), named("runs/../../escape"), 
    named("runs/link", tarfile.SYMTYPE, "/etc/passwd"),
    named("runs/hard", tarfile.LNKTYPE, "studio.db"), named("pipe", tarfile.FIFOTYPE),
    named("device", tarfile.CHRTYPE), named("runs", tarfile.DIRTYPE),
]  # fmt: skip


@pytest.mark.parametrize("info", HOSTILE, ids=lambda info: info.name)
def test_a_hostile_member_is_refused(tmp_path, info):
    file = tar_of(tmp_path / "bad.tar", [(info, b"x")])
    with pytest.raises(HomeError, match="which a backup never holds"):
        restore(tmp_path / "home", file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.tar"]


@pytest.mark.parametrize("name", ["a\\..\\b", "C:/escape", "models/qwen:0.5b/x"])
def test_a_colon_and_a_backslash_are_refused_where_they_mean_another_place(monkeypatch, name):
    assert restoring._is_inside(name)
    monkeypatch.setattr(os, "name", "nt")
    assert not restoring._is_inside(name)


def spoil(change: Callable[[bytearray], None]) -> Callable[[Path], None]:
    def spoiled(file: Path) -> None:
        content = bytearray(file.read_bytes())
        change(content)
        file.write_bytes(content)

    return spoiled


def _flip(content: bytearray) -> None:
    content[3000] ^= 1


def _lie(file: Path) -> None:
    with tarfile.open(file) as tar:
        members = [(m, tar.extractfile(m).read()) for m in tar]
    changed = []
    for info, body in members:
        if info.name == MANIFEST:
            manifest = json.loads(body)
            manifest["files"]["runs/9/extra"] = {"size": 1, "sha256": "0"}
            body = json.dumps(manifest).encode()
        changed.append((info, body))
    tar_of(file, changed)


@pytest.mark.parametrize(
    ("spoiled", "words"),
    [
        (spoil(_flip), "damaged: studio.db"),
        (spoil(lambda c: c.__delitem__(slice(len(c) // 2, None))), "cut short|not a backup"),
        (spoil(lambda c: c.__delitem__(slice(20480, None))), "cut short|not a backup"),
        (lambda file: file.write_bytes(b"no tar at all" * 99), "not a backup of this studio"),
        (lambda file: file.write_bytes(b""), "not a backup|cut short"),
        (lambda file: file.unlink(), "cannot be read"),
        (_lie, "damaged: runs/9/extra"),
    ],
)
def test_a_spoiled_backup_is_refused_and_changes_nothing(store, tmp_path, spoiled, words):
    filled(store)
    file = tmp_path / "home.tar"
    backup(store.home, file)
    spoiled(file)
    with pytest.raises(HomeError, match=words):
        restore(tmp_path / "other", file)
    assert not (tmp_path / "other").exists()
    assert not list(tmp_path.glob(".tmp-*"))


def test_every_path_in_the_home_moves_with_it(tmp_path):
    old, new = open_home(tmp_path / "Zoë's #1?%41 home"), tmp_path / "neu ü"
    model = str(old.models / "qwen:0.5b")
    (old.models / "qwen:0.5b").mkdir()
    (old.models / "qwen:0.5b" / "config.json").write_text("{}")
    with closing(JobStore(old)) as store:
        claim = filled(store)
        Recipes(store.database).save("mine", model, [{"name": model, "weight": 1}])
        votes = Votes(store.database)
        votes.cast(prompt="p", lanes=[model, f"starter~{old.adapters}/x:1"], winner=0)
    adapter = old.run(claim.job) / "adapter"
    with publishing(adapter) as temporary:
        for ascii_only, name in ((True, "passport.json"), (False, "adapter_config.json")):
            text = json.dumps({"base": model}, ensure_ascii=ascii_only)
            (temporary / name).write_text(text, encoding="utf-8")
    model_list.register(old, old.models)
    (old.state / "offline").touch()
    with sqlite3.connect(old.database) as db:
        db.execute("UPDATE jobs SET spec = json_set(spec, '$.model.path', ?)", (model,))
    backup(old, tmp_path / "b.tar")

    restore(new, tmp_path / "b.tar")

    moved = model.replace(str(old.path), str(new))
    with closing(JobStore(open_home(new))) as store:
        (point,) = store.checkpoints(claim.job)
        assert point["path"].startswith(f"{new}/")
        assert {job.spec["model"]["path"] for job in store.list()} == {moved}
        (recipe,) = Recipes(store.database).list()
        assert (recipe["model"], recipe["stack"][0]["name"]) == (moved, moved)
        (match,) = Votes(store.database).matches()
        assert str(match).count(str(new)) == 2 and str(old.path) not in str(match)
    adapter = Home(new).run(claim.job) / "adapter"
    for name in ("passport.json", "adapter_config.json"):
        assert json.loads((adapter / name).read_text("utf-8")) == {"base": moved}
    assert is_whole(adapter) and (Path(moved) / "config.json").is_file()
    assert model_list.registered(Home(new)) == [str(new / "models")]
    assert (new / "state" / "offline").is_file()


def test_a_copy_of_a_database_is_found_under_any_name(home, tmp_path):
    with closing(JobStore(home)) as store:
        store.submit(a_spec(name="kept"))
        copy = copy_daily(home, store.database, now=1_800_000_000.0)
    odd = tmp_path / "copy #1?%41.db"
    copy.rename(odd)
    assert restore(home.path, odd)["files"] == 1
    with closing(JobStore(home)) as store:
        assert store.get("kept").state == "queued"


def test_a_home_whose_runner_outlived_its_supervisor_is_in_use(store, tmp_path):
    store.home.run(1).mkdir()
    backup(store.home, tmp_path / "b.tar")
    lock = FileLock(store.home.run(1) / ".lock")
    with lock.held(timeout_seconds=1), pytest.raises(HomeError, match="in use"):
        restore(store.home.path, tmp_path / "b.tar")
    lock.close()


def test_a_copy_of_a_time_when_the_clock_was_ahead_stops_no_later_one(store):
    ahead = copy_daily(store.home, store.database, now=2_000_000_000.0)
    os.utime(ahead, (2_000_000_000.0,) * 2)
    copies = []
    for day in range(9):
        now = 1_800_000_000.0 + 86_401 * day
        copies.append(copy_daily(store.home, store.database, now=now))
        os.utime(copies[-1], (now, now))
        assert copy_daily(store.home, store.database, now=now + 60) is None
    assert daily_copies(store.home.path) == [*copies[-6:], ahead]


def test_a_damaged_database_comes_back_from_its_daily_copy(home):
    store = JobStore(home)
    store.submit(a_spec(name="kept"))
    copy = copy_daily(home, store.database, now=1_800_000_000.0)
    assert copy is not None
    assert copy_daily(home, store.database, now=copy.stat().st_mtime + 60) is None
    for day in range(1, 12):
        copy_daily(home, store.database, now=copy.stat().st_mtime + 86_401 * day)
    assert len(list((home.path / "backups").iterdir())) <= backups.DAILY_KEPT
    store.close()
    newest = sorted((home.path / "backups").iterdir())[-1]
    with home.database.open("r+b") as file:
        file.seek(0)
        file.write(b"\xff" * 8000)
    with pytest.raises(HomeError, match=f"studio restore {newest}"):
        JobStore(home)
    done = restore(home.path, newest)
    assert done["before"] and Path(done["before"]).exists()
    store = JobStore(home)
    assert store.get("kept").state == "queued"
    store.close()


def test_the_database_before_keeps_what_a_kill_left_in_its_log(store, tmp_path):
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE x(y)")
    with pytest.raises(HomeError, match="not one of this studio"):
        restore(store.home.path, tmp_path / "other.db")
    copy = copy_daily(store.home, store.database, now=1_800_000_000.0)
    store.submit(a_spec(name="later"))
    killed = tmp_path / "killed"
    shutil.copytree(store.home.path, killed)  # as it is while the database is open
    done = restore(killed, copy)
    with closing(sqlite3.connect(done["before"])) as kept:
        assert kept.execute("SELECT name FROM jobs").fetchall() == [("later",)]


def test_a_full_disk_leaves_no_half_backup(store, tmp_path, monkeypatch):
    filled(store)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with pytest.raises(DiskFull, match="backup was not made"):
        backup(store.home, tmp_path / "b.tar")
    assert not [p.name for p in tmp_path.iterdir() if p.name.endswith(".tar")]
    assert not list(store.home.state.glob(".backup-*"))

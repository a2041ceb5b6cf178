"""The adapter library: what lies on disk, names, tags, and a trash that gives everything back."""

import json
import time
from pathlib import Path

import pytest

from studio.adapter_stack import StackItem
from studio.adapters import library
from studio.adapters.adapter_lineage import base_of, resolve_stack
from studio.adapters.library import adapters, describe, resolve
from studio.errors import AdapterError
from studio.home import is_whole, publishing
from studio.spec import ModelSource


def make_adapter(folder: Path, **passport: object) -> Path:
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "base_model_name_or_path": "some/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(b"12345")
    if passport:
        (folder / "passport.json").write_text(json.dumps(passport))
    return folder


def test_runs_and_library_are_listed_newest_first(home):
    make_adapter(home.runs / "3" / "adapter", name="pirate", created="2026-01-01T00:00:00+00:00")
    make_adapter(home.adapters / "mixed", name="mixed", created="2026-02-01T00:00:00+00:00")
    (home.runs / "4").mkdir()
    found = adapters(home)
    assert [(a.name, a.source, a.method) for a in found] == [
        ("mixed", "library", "lora"), ("pirate", "run", "lora")
    ]  # fmt: skip
    assert found[0].size_bytes == 5


def test_the_passport_tells_the_base_and_how_it_ended(home):
    folder = make_adapter(
        home.runs / "3" / "adapter", name="p", ended="completed", steps=7, last_loss=1.5,
        base={"path": "starter", "fingerprint": "a-b"},
        spec={"method": {"name": "lora"}},
    )  # fmt: skip
    found = describe(folder, source="run")
    assert (found.base, found.base_fingerprint, found.steps) == ("starter", "a-b", 7)
    assert (found.ended, found.last_loss, found.eval_loss) == ("completed", 1.5, None)
    foreign = describe(make_adapter(home.adapters / "theirs"))
    assert (foreign.name, foreign.base, foreign.ended) == ("theirs", "some/base", "")


@pytest.mark.parametrize(
    "passport",
    [
        {"spec": {"model": {"path": "some/base", "revision": "v1"}}},
        {"base": {"path": "some/base", "revision": "v1"}},
    ],
)
def test_the_base_of_a_stack_is_the_revision_that_its_adapter_was_trained_on(home, passport):
    folder = make_adapter(home.adapters / "own", **passport)
    stack = (StackItem(name=str(folder)),)
    found = base_of(ModelSource(path="", dtype="float32"), stack)
    assert (found.path, found.revision, found.dtype) == ("some/base", "v1", "float32")
    chosen = ModelSource(path="other/base")
    assert base_of(chosen, stack) == chosen


def test_an_adapter_on_another_base_has_no_revision_of_the_old_one(home):
    spec = {"model": {"path": "some/base", "revision": "v1"}}
    moved = make_adapter(home.adapters / "own", spec=spec, base={"path": "other/base"})
    assert (describe(moved).base, describe(moved).base_revision) == ("other/base", "")


def test_adapters_are_found_by_path_name_and_run(home, tmp_path):
    run = make_adapter(home.runs / "3" / "adapter", name="Pirate talk")
    own = make_adapter(home.adapters / "mixed")
    other = make_adapter(tmp_path / "other")
    assert resolve(home, str(other)) == other
    assert resolve(home, "mixed") == own
    assert resolve(home, "Pirate talk") == run
    assert resolve(home, "3") == run
    assert resolve(home, str(home.runs / "3")) == run


def test_a_folder_of_the_working_directory_does_not_hide_an_adapter(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = make_adapter(home.adapters / "pirate")
    (tmp_path / "pirate").mkdir()
    assert resolve(home, "pirate") == own
    other = make_adapter(tmp_path / "exported" / "pirate")
    (tmp_path / "pirate").rmdir()
    other = other.rename(tmp_path / "pirate").absolute()
    assert resolve(home, "pirate") == own
    assert resolve(home, "./pirate") == other


def test_a_fully_fine_tuned_model_is_no_part_of_a_stack(home):
    make_adapter(home.runs / "3" / "adapter", name="pirate")
    whole = make_adapter(home.runs / "4" / "adapter", spec={"method": {"name": "full"}}, name="all")
    (whole / "adapter_config.json").rename(whole / "config.json")
    alone, pirate = StackItem(name="all"), StackItem(name="pirate")
    assert [one.name for one in resolve_stack(home, (alone,), or_model=True)] == [str(whole)]
    half = alone.model_copy(update={"weight": 0.5})
    for stack, ok in (((alone,), False), ((alone, pirate), True), ((half,), True)):
        with pytest.raises(AdapterError, match='"all" is a model of its own'):
            resolve_stack(home, stack, or_model=ok)


def test_an_unknown_adapter_names_the_nearest(home):
    with pytest.raises(AdapterError, match="None has been trained"):
        resolve(home, "pirate")
    make_adapter(home.adapters / "pirate")
    with pytest.raises(AdapterError, match='Did you mean "pirate"'):
        resolve(home, "pirat")
    with pytest.raises(AdapterError):
        resolve(home, "../../etc")


def test_broken_folders_are_refused_and_left_out_of_the_list(home):
    folder = make_adapter(home.adapters / "broken")
    (folder / "adapter_config.json").write_text("{")
    assert adapters(home) == []
    with pytest.raises(AdapterError, match="not valid JSON"):
        describe(folder)
    pickled = make_adapter(home.adapters / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(AdapterError, match="save_pretrained"):
        describe(pickled)


def test_an_odd_passport_leaves_its_adapter_in_the_list(home):
    folder = make_adapter(home.adapters / "odd")
    odd = {"name": "odd", "steps": "many", "parents": 3, "first_loss": float("inf")}
    (folder / "passport.json").write_text(json.dumps(odd))
    (found,) = adapters(home)
    assert (found.name, found.steps, found.parents, found.first_loss) == ("odd", 0, (), None)


def put(folder: Path, name: str) -> Path:
    with publishing(folder) as temporary:
        (temporary / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
        (temporary / "adapter_model.safetensors").write_bytes(b"12345")
        (temporary / "passport.json").write_text(json.dumps({"name": name}))
    return folder


def test_a_new_name_moves_a_library_folder_and_leaves_its_files_whole(home):
    put(home.adapters / "old", "old")
    found = library.rename(home, "old", "New Name")
    assert (found.name, found.path, found.id) == (
        "New Name", home.adapters / "new-name", "library-new-name"
    )  # fmt: skip
    assert is_whole(found.path)
    assert resolve(home, "New Name") == found.path
    assert not (home.adapters / "old").exists()


def test_a_runs_adapter_stays_where_it_is_and_is_found_by_both_names(home):
    folder = put(home.runs / "3" / "adapter", "first mate")
    found = library.rename(home, "3", "captain")
    assert (found.path, found.id) == (folder, "run-3")
    for name in ("captain", "first mate", "3"):
        assert resolve(home, name) == folder
    put(home.runs / "4" / "adapter", "first mate")
    assert resolve(home, "first mate") == home.runs / "4" / "adapter"


@pytest.mark.parametrize(
    "new", ["", "  ", "a/b", "..\\x", "pirate:2", "~root", "x" * 121, "a\0b", "pirate"]
)
def test_a_name_that_cannot_be_one_or_is_taken_is_refused(home, new):
    put(home.adapters / "a", "a")
    put(home.runs / "1" / "adapter", "Pirate")
    with pytest.raises(AdapterError, match="already an adapter" if new == "pirate" else None):
        library.rename(home, "a", new)
    assert {one.name for one in adapters(home)} == {"a", "Pirate"}


def test_tags_are_set_and_taken_away_and_survive_a_new_name(home):
    put(home.adapters / "a", "a")
    assert library.set_tags(home, "a", [" good  one ", "good one", "", "x"]).tags == (
        "good one",
        "x",
    )
    assert library.rename(home, "a", "b").tags == ("good one", "x")
    assert library.set_tags(home, "b", []).tags == ()
    assert adapters(home)[0].name == "b"
    with pytest.raises(AdapterError, match="Invalid tag"):
        library.set_tags(home, "b", ["a,b"])
    with pytest.raises(AdapterError, match="at most 20 tags"):
        library.set_tags(home, "b", [str(n) for n in range(21)])


def test_what_was_deleted_comes_back_as_it_was(home):
    folder = put(home.runs / "3" / "adapter", "p")
    library.set_tags(home, "p", ["good"])
    gone = library.delete(home, "p")
    assert adapters(home) == [] and not folder.exists()
    assert [one.token for one in library.deleted(home)] == [gone.token]
    back = library.restore(home)
    assert (back.path, back.name, back.tags, back.source) == (folder, "p", ("good",), "run")
    assert is_whole(folder) and library.deleted(home) == []
    with pytest.raises(AdapterError, match="nothing to restore"):
        library.restore(home)


def test_the_named_one_comes_back_and_never_over_another(home):
    for name in ("a", "b"):
        put(home.adapters / name, name)
        library.delete(home, name)
    assert library.restore(home, "a").name == "a"
    put(home.adapters / "b", "b")
    with pytest.raises(AdapterError, match="cannot be restored"):
        library.restore(home, "b")
    with pytest.raises(AdapterError, match='Did you mean "b"'):
        library.restore(home, "bb")


def test_the_trash_is_emptied_after_a_month_and_never_leaves_the_home(home):
    put(home.adapters / "a", "a")
    put(home.adapters / "b", "b")
    old = home.trash / library.delete(home, "a").token
    origin = json.loads((old / "origin.json").read_text())
    (old / "origin.json").write_text(json.dumps(origin | {"deleted": time.time() - 40 * 86_400}))
    library.delete(home, "b")
    assert [one.name for one in library.deleted(home)] == ["b"]
    place = home.trash / library.deleted(home)[0].token
    (place / "origin.json").write_text(json.dumps(origin | {"path": "../../elsewhere"}))
    assert library.deleted(home) == []


def test_an_adapter_outside_the_home_is_not_ours_to_change(home, tmp_path):
    other = put(tmp_path / "theirs", "theirs")
    for change in (library.delete, lambda h, n: library.rename(h, n, "mine")):
        with pytest.raises(AdapterError, match="not in this home"):
            change(home, str(other))

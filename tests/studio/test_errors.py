"""Errors cross from one process to another as their kind and their text."""

import importlib
import pkgutil

import studio.data
from studio.errors import StudioError, revived


def test_every_error_comes_back_from_its_kind_and_text():
    for module in pkgutil.walk_packages(studio.data.__path__, "studio.data."):
        importlib.import_module(module.name)
    kinds = {one.kind: one for one in _children(StudioError) if "kind" in vars(one)}
    assert len(kinds) > 10
    for kind, made in kinds.items():
        error = revived({"kind": kind, "text": "What was wrong."})
        assert (type(error), error.text) == (made, "What was wrong.")
    assert revived({"kind": "of another version", "text": "x"}).text == "x"


def _children(root):
    yield root
    for child in root.__subclasses__():
        yield from _children(child)

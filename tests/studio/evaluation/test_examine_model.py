"""The support matrix says what works on each family: neither more nor less."""

import os
from importlib.metadata import version

import pytest
import torch

from studio.backbone import Backbone, equalities
from studio.backbone.equalities import Unequal, attach_random
from studio.evaluation import examine_model
from tests.families import FAMILIES, family_model
from tests.support_matrix import PAGE, examine, is_known, page, read_record

RECORD = read_record()
LONG = bool(os.environ.get("STUDIO_LONG"))  # all methods on each family
WRITE = "run `python -m tests.support_matrix {}` to record it"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_does_what_the_matrix_says(name):
    if not is_known(name):
        pytest.skip(f"transformers {version('transformers')} does not know {FAMILIES[name].kind}")
    # Each family meets LoRA and a third of the other methods, each method a third of the families.
    place = [*FAMILIES].index(name)
    others = [method for method in examine_model.methods_of_own() if method != "lora"]
    skip = () if LONG else [one for n, one in enumerate(others) if (n + place) % 3]
    found, recorded = examine(name, skip=skip), RECORD["families"][name]
    changed = {
        key: {"was": recorded.get(key, "absent") or "yes", "is": why or "yes"}
        for key, why in found.items()
        if why != recorded.get(key)
    }
    assert not changed, WRITE.format(name)


def test_the_page_is_made_of_the_record():
    assert PAGE.read_text(encoding="utf-8") == page(RECORD), WRITE.format("")


def backbone_with_lora(name):
    backbone = Backbone(family_model(name))
    attach_random(backbone, "a", examine_model.small("lora"))
    return backbone


def test_rows_that_leak_are_found(monkeypatch):
    backbone = backbone_with_lora("llama")
    plain = backbone.packed_logits
    monkeypatch.setattr(
        backbone, "packed_logits", lambda ids, lengths, keep: plain(ids, [sum(lengths)], keep)
    )
    with pytest.raises(Unequal, match="Logits of packed and separate rows differ"):
        equalities.require_packing(backbone, "a")


def test_gradients_that_are_lost_under_checkpointing_are_found(monkeypatch):
    backbone = backbone_with_lora("llama")
    plain, layer = backbone.checkpointing, backbone.anatomy.layers()[1]

    def losing(on):
        plain(on)
        if on:
            layer.register_forward_pre_hook(lambda module, given: (given[0].detach(), *given[1:]))

    monkeypatch.setattr(backbone, "checkpointing", losing)
    with pytest.raises(Unequal, match="Gradients with and without checkpointing differ"):
        equalities.require_checkpointing(backbone, "a")


def test_a_tensor_that_does_not_train_is_named():
    backbone = backbone_with_lora("llama")
    adapter = backbone.adapters["a"]
    key = adapter.sites[0].key
    with torch.no_grad():
        adapter.params[key]["lora_B"].zero_()
    with pytest.raises(Unequal, match=rf"no gradient to {key}/lora_A"):
        equalities.require_training(backbone, "a")


def test_a_cache_that_forgets_is_found():
    backbone = backbone_with_lora("llama")

    def forgetting(ids, start):
        rows = torch.tensor(ids[start - 1 :])[:, None]
        return backbone.model(input_ids=rows).logits[:, 0]

    with pytest.raises(Unequal, match="with and without a cache"):
        equalities.require_cache(backbone, "a", forgetting)

"""The library in a real browser: train two, mix and merge them, name, tag, delete, undo."""

import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import longest_answer, put_adapters, surely, train

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
SLOW = 240_000  # a busy machine with two cores


def test_two_adapters_are_mixed_merged_renamed_deleted_and_restored(page, studio):
    for seed, name in enumerate(("one", "two")):
        train(studio, name, {"name": "lora", "r": 2}, seed)
    page.goto("/adapters")
    cards = page.locator(".s-adapter")
    expect(cards).to_have_count(2, timeout=SLOW)
    expect(cards.first).to_contain_text("succeeded")

    # Mix: exactly the weighted sum, and its passport names both parents.
    for place in (0, 1):
        cards.nth(place).get_by_role("checkbox").check()
    page.get_by_role("button", name="Mix …").click()
    page.get_by_label("Weight 1").fill("0.5")
    page.get_by_label("Name of the new adapter").fill("both")
    page.get_by_role("button", name="Mix", exact=True).click()
    exact = re.compile(r"Difference from the weighted sum(0|[\d.]+e-0[4-9])%")
    expect(page.get_by_test_id("activity")).to_contain_text(exact, timeout=SLOW)
    mixed = page.get_by_test_id("adapter-library-both")
    expect(mixed).to_contain_text("mixed")

    # Merge: the certificate is shown.
    page.get_by_role("button", name="Merge …").click()
    page.get_by_label("Name of the merged model").fill("merged")
    page.get_by_role("button", name="Merge", exact=True).click()
    expect(page.get_by_test_id("certificate")).to_contain_text("Largest logit error", timeout=SLOW)

    # Passport: rename and tag in place; the address reopens it.
    mixed.get_by_role("button", name="Passport").click()
    passport = page.get_by_test_id("passport")
    expect(passport).to_contain_text(re.compile("one:0.5, two:1|two:0.5, one:1"))
    passport.get_by_test_id("name").fill("sea talk")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("adapter=library-sea-talk"))
    passport.get_by_test_id("tags").fill("good, <b>demo</b>")
    page.keyboard.press("Enter")
    card = page.get_by_test_id("adapter-library-sea-talk")
    expect(card).to_contain_text("<b>demo</b>")
    page.reload()
    expect(passport.get_by_test_id("name")).to_have_value("sea talk")

    # Delete and undo.
    surely(passport, "Delete", "Really delete?")
    expect(card).to_have_count(0)
    page.get_by_role("button", name="Restore").click()
    expect(card).to_contain_text("sea talk")

    # Compare opens with the base and this adapter.
    card.get_by_role("link", name="Compare").click()
    expect(page.get_by_test_id("lane-1")).to_contain_text("sea talk")


@pytest.mark.refused("/api/do/push")
def test_an_adapter_is_exported_checked_and_not_pushed_offline(page, studio):
    train(studio, "gift", {"name": "lora", "r": 2}, 5)
    page.goto("/adapters")
    card = page.locator(".s-adapter").filter(has_text="gift")
    expect(card).to_have_count(1, timeout=SLOW)
    for form, kind in (("vllm", "Export"), ("gguf", "GGUF")):
        card.get_by_role("button", name="Passport").click()
        page.get_by_test_id("passport").get_by_role("button", name="Export …").click()
        dialog = page.get_by_role("dialog")
        dialog.locator("[name=form]").select_option(form)
        dialog.get_by_role("button", name="Export adapter", exact=True).click()
        made = page.get_by_test_id("activity").locator("li").filter(has_text=kind).first
        check = made.get_by_test_id("export-check")
        expect(check).to_contain_text("Largest logit error", timeout=SLOW)
        page.get_by_test_id("passport").get_by_role("button", name="Close").click()
    folder = next((studio.home / "exports").glob("*gguf"))
    assert {"Modelfile", "README.md", "gguf.json"} <= {file.name for file in folder.iterdir()}

    page.get_by_role("button", name="Push to the hub …").first.click()
    page.get_by_label("Repository").fill("me/gift")
    page.get_by_role("button", name="Upload to a hub", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("this studio is offline")


def test_target_modules_are_picked_by_layer(page):
    page.goto("/")
    expect(page.locator("#data-note")).to_contain_text("rows", timeout=SLOW)
    field = page.locator("#field-method-target_modules")
    field.get_by_role("button", name="Choose …").click()
    page.get_by_role("button", name="All", exact=True).click()
    page.get_by_role("button", name="self_attn.q_proj").click()
    page.get_by_role("button", name="Use these").click()
    expect(page).to_have_url(re.compile("method.target_modules"))


def test_four_families_in_one_lane_follow_their_sliders(page, studio):
    families = {"low": ("lora", {}), "neck": ("bottleneck", {}), "front": ("prefix_tuning", {}),
                "bias": ("bitfit", {"create_missing": True})}  # fmt: skip
    put_adapters(studio, families, noise=0.1)
    page.goto("/compare?lane=starter&lane=starter~" + "%2B".join(f"{name}:1" for name in families))
    longest_answer(page, 8)
    page.get_by_test_id("prompt").fill("What sound does a cow make?")
    page.keyboard.press("Enter")
    stack = " + ".join(f"{name} × 1" for name in families)
    expect(page.get_by_test_id("figures-1")).to_contain_text(stack, timeout=SLOW)
    expect(page.get_by_test_id("figures-0")).to_contain_text("base", timeout=SLOW)
    base, all_four = (page.get_by_test_id(f"answer-{lane}").inner_text() for lane in (0, 1))
    assert base != all_four

    for name in families:
        page.get_by_test_id("lane-1").get_by_label(f"Weight of {name}").fill("0")
    expect(page).to_have_url(re.compile(r"bias:0\b"))
    page.get_by_role("button", name="Ask again").click()
    expect(page.get_by_test_id("answer-1")).to_have_text(base, timeout=SLOW, use_inner_text=True)

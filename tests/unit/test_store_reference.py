"""Names are types: what one is made of can be a path below the store, and nothing else can."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hxd.daemon.store.faults import BadName
from hxd.daemon.store.reference import Digest, Label, ModelName, Reference, VariantName

PARTS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True)
NAMES = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
VARIANTS = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,31}", fullmatch=True)
LABELS = st.from_regex(r"[a-z][a-z0-9_-]{0,31}", fullmatch=True)


def test_a_bare_name_a_variant_and_both_selectors_are_read() -> None:
    assert Reference.parse("phi-3-mini") == Reference(ModelName("phi-3-mini"))
    assert Reference.parse("org/phi:q4_k_m@3") == Reference(
        ModelName("org/phi"), VariantName("q4_k_m"), 3
    )
    assert Reference.parse("phi@stable").selector == Label("stable")


@given(NAMES, st.none() | VARIANTS, st.none() | st.integers(1, 999_999_999) | LABELS)
def test_what_is_read_is_written_the_same(
    name: str, variant: str | None, selector: int | str | None
) -> None:
    text = name + (f":{variant}" if variant else "") + (f"@{selector}" if selector else "")
    try:
        reference = Reference.parse(text)
    except BadName:
        return  # A part that is a number or a word of the store's own.
    assert str(reference) == text
    assert Reference.parse(str(reference)) == reference


@given(st.text(max_size=40) | st.text(alphabet="ab1/.:@-_\0\n\\", max_size=20))
def test_any_text_is_a_reference_that_stays_in_its_folder_or_is_refused(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except BadName:
        return
    path = PurePosixPath("/store/models") / reference.name
    assert path.is_relative_to("/store/models")
    assert not {"..", "."} & set(path.parts)
    assert "\0" not in str(path) and str(reference) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "../x", "a/../b", "a//b", "/a", "a/", "./a", "a/.", "a\0b", "a\r\nb", "a\n", "a b",
        "a\x1b[31m", "~/a", "a\\b", "Ünicode", "a/1", "a/0/b", "a/variants", "a/Variants",
        "a/labels.toml", "a/manifest.toml", "a:", "a@", "a:Q4_K_M", "a:../f16", "a:b:c", "a@1@2",
        "x" * 129, "a@0", "a@01", "a@-1", "a@1000000000", "a@²", "a@1x", "a@Stable", "a@sta ble",
        "a@stable\n", "a@stable:f16", "a:f16\0", ":f16", "@1",
    ],
)  # fmt: skip
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(BadName) as refused:
        Reference.parse(text)
    assert refused.value.status == 400
    assert "\n" not in refused.value.message and "\x1b" not in refused.value.message


def test_a_megabyte_of_a_name_makes_a_short_message() -> None:
    with pytest.raises(BadName) as refused:
        Reference.parse("x" * 1_000_000)
    assert len(refused.value.message) < 500


@pytest.mark.parametrize(
    "text", ["", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "a" * 64 + "\n", "../"]
)
def test_only_64_lower_case_hexadecimal_digits_are_a_digest(text: str) -> None:
    with pytest.raises(BadName):
        Digest(text)


def test_a_first_part_may_be_a_number_and_a_later_one_may_contain_one() -> None:
    assert Reference.parse("7/b").name == "7/b"
    assert Reference.parse("org/7b@2").selector == 2

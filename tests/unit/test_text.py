from hypothesis import given
from hypothesis import strategies as st

from hxd.worker.text import TextAssembler


def assemble(pieces: list[bytes], stops: list[str]) -> tuple[list[str], bool]:
    assembler = TextAssembler(stops)
    sent = []
    for piece in pieces:
        sent.append(assembler.feed(piece))
        if assembler.stopped:
            return sent, True
    sent.append(assembler.finish())
    return sent, assembler.stopped


@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_byte_by_byte_the_text_ends_before_the_first_stop_string_completed(
    text: str, stops: list[str]
) -> None:
    data = text.encode("utf-8", "replace")
    sent, stopped = assemble([bytes([byte]) for byte in data], stops)
    whole = data.decode()
    ends = [whole.find(stop) + len(stop) for stop in stops if stop in whole]
    assert stopped == bool(ends)
    if ends:
        # Of those completed by the same character, the longest match starts first.
        starts = [whole.find(stop) for stop in stops if stop in whole[: min(ends)]]
        assert "".join(sent) == whole[: min(starts)]
    else:
        assert "".join(sent) == whole


@given(st.text(min_size=1, max_size=40), st.integers(1, 3))
def test_no_character_is_ever_split(text: str, size: int) -> None:
    data = text.encode("utf-8", "replace")
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    sent, _ = assemble(pieces, [])
    assert "\ufffd" not in "".join(sent) or "\ufffd" in text
    assert "".join(sent) == data.decode()


def test_bytes_that_are_no_utf8_become_replacement_characters() -> None:
    sent, _ = assemble([b"a\xff", b"b", b"\xe2\x82"], [])
    assert "".join(sent) == "a\ufffdb\ufffd"


def test_text_is_held_only_while_it_may_become_a_stop_string() -> None:
    assembler = TextAssembler(["STOP"])
    assert assembler.feed(b"abcST") == "abc"
    assert assembler.feed(b"ART") == "START"
    assert assembler.feed(b"S") == ""
    assert assembler.finish() == "S"


def test_nothing_follows_a_stop_string() -> None:
    assembler = TextAssembler(["é"])
    assert assembler.feed("caf\u00e9 au lait".encode()) == "caf"
    assert assembler.stopped
    assert assembler.finish() == ""


def test_tokens_fed_again_by_another_worker_give_the_same_state() -> None:
    data = "one two €uro STOP".encode()
    first, second = TextAssembler(["STOP"]), TextAssembler(["STOP"])
    for at in range(len(data)):
        first.feed(data[at : at + 1])
        again = TextAssembler(["STOP"])
        for byte in data[: at + 1]:
            again.feed(bytes([byte]))
        second = again
        assert vars(second)["_held"] == vars(first)["_held"]
        assert second.stopped == first.stopped

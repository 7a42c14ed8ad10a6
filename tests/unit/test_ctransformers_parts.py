"""What the ctransformers plugin decides without its library: turns, chunks, memory, words."""

from __future__ import annotations

import time

import pytest

from hxd.ggml import Header, Vocabulary
from plugins.ctransformers import buffers
from plugins.ctransformers.cutting import BytePairs, Greedy, SentencePiece, Unigram
from plugins.ctransformers.pace import LONGEST, Pace
from plugins.ctransformers.turns import Turn, Turns
from plugins.ctransformers.vocabulary import Vocabulary as Model
from plugins.ctransformers.vocabulary import legacy


def header(family: str, **sizes: int) -> Header:
    known = {"vocab": 50257, "width": 768, "heads": 12, "layers": 12, "context": 1024} | sizes
    return Header(
        family=family,
        file_type="f16",
        size=1 << 28,
        tensors=100,
        inner=4 * known["width"],
        kv_heads=known["heads"],
        **known,
    )


def read_all(turns: Turns, turn: Turn) -> None:
    assert turns.first() is turn
    turns.read(turn, turn.pending)


def test_sequences_have_their_turns_in_the_order_they_came() -> None:
    turns = Turns(cuttable=True)
    for id in (5, 3, 4):
        turns.add(Turn(id, [1, 2, 3]))
    order = []
    while (turn := turns.first()) is not None:
        order.append(turn.id)
        turns.remove(turn.id)
    assert order == [5, 3, 4]


def test_a_turn_lasts_until_the_sequence_is_removed() -> None:
    turns = Turns(cuttable=True)
    first, second = Turn(1, [1, 2]), Turn(2, [1])
    turns.add(first)
    turns.add(second)
    for token in range(20):
        read_all(turns, first)
        first.tokens.append(token)
    turns.remove(1)
    assert turns.first() is second


@pytest.mark.parametrize(
    ("tokens", "cache", "fed"),
    [
        ([1, 2, 3, 9, 9], "a", 3),
        ([1, 2, 3, 4], "a", 3),
        ([1, 2], "a", 1),
        ([9, 2, 3], "a", 0),
        ([1, 2, 3, 4, 5, 6], "a", 4),
        ([1, 2, 3, 4, 5, 6], "b", 0),
    ],
)
def test_what_is_in_the_cache_is_not_read_again_and_one_token_always_is(
    tokens: list[int], cache: str, fed: int
) -> None:
    turns = Turns(cuttable=True)
    before = Turn(1, [1, 2, 3, 4], "a")
    turns.add(before)
    read_all(turns, before)
    turns.remove(1)
    turns.add(Turn(2, tokens, cache))
    turn = turns.first()
    assert turn is not None
    assert (turn.fed, turn.cached, turns.held) == (fed, fed, fed)


def test_a_cache_that_can_not_be_cut_is_used_whole_or_not_at_all() -> None:
    for tokens, fed in (([1, 2, 3], 2), ([1, 9, 3], 0), ([1, 2], 0)):
        turns = Turns(cuttable=False)
        before = Turn(1, [1, 2])
        turns.add(before)
        read_all(turns, before)
        turns.remove(1)
        turns.add(Turn(2, tokens))
        turn = turns.first()
        assert turn is not None
        assert turn.fed == fed


def test_a_prompt_that_was_cancelled_serves_the_next_one_as_far_as_it_was_read() -> None:
    turns = Turns(cuttable=True)
    turn = Turn(1, list(range(100)))
    turns.add(turn)
    assert turns.first() is turn
    turns.read(turn, 30)
    turns.remove(1)
    turns.add(Turn(2, list(range(100))))
    after = turns.first()
    assert after is not None
    assert after.fed == 30


def test_who_wants_every_token_evaluated_gets_nothing_from_the_cache() -> None:
    turns = Turns(cuttable=True)
    before = Turn(1, [1, 2])
    turns.add(before)
    read_all(turns, before)
    turns.remove(1)
    turns.add(Turn(2, [1, 2, 3], alone=True))
    turn = turns.first()
    assert turn is not None
    assert turn.fed == 0


def test_chunks_shrink_until_a_step_is_short() -> None:
    pace = Pace(64)
    first = pace.chunk
    assert first <= 8
    for _ in range(20):
        pace.observe(pace.chunk, pace.chunk * 0.1)
    assert pace.chunk * 0.1 <= LONGEST
    for _ in range(40):
        pace.observe(pace.chunk, pace.chunk * 1e-4)
    assert pace.chunk == 64


def test_models_of_their_time_fit_whole() -> None:
    sizes = {
        "gpt2": {},
        "gptj": {"width": 4096, "heads": 16, "layers": 28, "context": 2048, "vocab": 50400},
        "gptneox": {"width": 6144, "heads": 64, "layers": 44, "context": 2048, "vocab": 50432},
        "dolly-v2": {"width": 5120, "heads": 40, "layers": 36, "context": 2048, "vocab": 50280},
        "mpt": {"width": 7168, "heads": 64, "layers": 48, "context": 2048, "vocab": 50432},
        "starcoder": {"width": 6144, "heads": 48, "layers": 40, "context": 8192, "vocab": 49152},
        "falcon": {"width": 4544, "heads": 71, "layers": 32, "context": 2048, "vocab": 65024},
        "llama": {"width": 8192, "heads": 64, "layers": 80, "context": 2048, "vocab": 32000},
    }
    for family, known in sizes.items():
        model = header(family, **known)
        assert model.context is not None
        room = buffers.fit(model, 64, model.context)
        assert room.context == model.context, family
        assert room.tokens(0) >= 5, family
        assert room.tokens(model.context - 2) == 2, family


def test_a_context_that_the_library_has_no_memory_for_is_cut() -> None:
    large = header("gpt2", width=1600, heads=25, layers=48)
    replit = header("replit", width=2560, heads=32, layers=32, context=2048, vocab=32768)
    for model, least in ((large, 700), (replit, 1300)):
        assert model.context is not None
        room = buffers.fit(model, 64, model.context)
        assert least < room.context < model.context
        assert room.tokens(0) > 10
        assert room.tokens(room.context - 5) < 5
        assert room.tokens(room.context - 1) == 1
    long = header("mpt", width=4096, heads=32, layers=32, context=65536)
    assert 16384 < buffers.fit(long, 64, 65536).context < 65536


def test_more_layers_than_the_graph_holds_are_refused() -> None:
    with pytest.raises(ValueError, match="100 layers are more than the library computes; 64"):
        buffers.fit(header("gpt2", layers=100), 64, 1024)


SINGLE = [bytes([byte]) for byte in range(256)]


def test_the_longest_word_wins_where_ranks_are_lost() -> None:
    cutter = Greedy([*SINGLE, b"hell", b"hello", b" hello", b"12"])
    assert cutter.cut("hello hello123") == [257, 258, 259, ord("3")]
    assert Greedy([b"a"]).cut("abc a") == [0, 0]


def test_pieces_join_in_the_order_of_their_scores() -> None:
    words = [b"<unk>", b"a", b"b", b"c", b"ab", b"bc", b"abc", b"<0x64>"]
    scores = [0.0, 0.0, 0.0, 0.0, -2.0, -1.0, -3.0, 0.0]
    cutter = SentencePiece(words, scores, unknown=0)
    assert cutter.cut("abc") == [6]
    assert cutter.cut("abab") == [4, 4]
    assert cutter.cut("abcb") == [6, 2]
    assert cutter.cut("dé") == [7, 0, 0]


def test_byte_pairs_join_by_rank_inside_words_only() -> None:
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "he")]
    vocabulary = Vocabulary(
        words=[*SINGLE, b"he", b"ll", b"hell", b" he"],
        merges=[(left.encode(), right.encode()) for left, right in merges],
    )
    cutter = BytePairs(vocabulary)
    assert cutter.cut("hello") == [258, ord("o")]
    assert cutter.cut("x he") == [ord("x"), 259]
    assert cutter.cut("h e") == [ord("h"), ord(" "), ord("e")]


def test_the_best_scores_together_win() -> None:
    words = [b"<unk>", b"a", b"b", b"ab", "▁".encode(), "▁a".encode()]
    cutter = Unigram(words, [0.0, -1.0, -1.0, -3.0, -1.0, -1.5])
    assert cutter.cut("ab") == [1, 2]
    assert cutter.cut(" ab") == [5, 2]
    assert cutter.cut("x") == [0]


@pytest.mark.parametrize(
    "cutter",
    [
        Greedy([*SINGLE, b"aa"]),
        SentencePiece([*SINGLE, b"aa", b"aaaa"], [0.0] * 258, unknown=0),
        BytePairs(Vocabulary(words=[*SINGLE, b"aa"], merges=[(b"a", b"a")])),
        Unigram([*SINGLE, b"aa"], [-1.0] * 257),
    ],
    ids=lambda cutter: type(cutter).__name__,
)
def test_a_word_of_a_hundred_thousand_letters_is_cut_in_little_time(cutter: Greedy) -> None:
    started = time.process_time()
    assert len(cutter.cut("a" * 100_000)) <= 50_000
    assert time.process_time() - started < 5


def test_control_words_are_read_where_they_are_meant_and_text_elsewhere() -> None:
    words = [b"<|endoftext|>", *SINGLE, b"### End", b"<|im_end|>"]
    model = Model(legacy("dolly-v2", Vocabulary(words=words, scores=[0.0] * len(words))))
    assert model.special_tokens == {"<|endoftext|>": 0, "### End": 257, "<|im_end|>": 258}
    assert model.ending == {0, 257, 258}
    text = "a### End<|endoftext|>"
    assert model.tokenize(text, add_special=True, parse_special=True) == [ord("a") + 1, 257, 0]
    plain = model.tokenize(text, add_special=True, parse_special=False)
    assert b"".join(map(model.piece, plain)) == text.encode()
    assert (model.piece(257), model.piece(257, special=True)) == (b"", b"### End")
    assert model.piece(1 << 20) == b""

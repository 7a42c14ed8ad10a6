"""Golden prompts: what a file may say, what an answer is worth, and the ones of the demo model."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hxd.daemon.rollout.golden import (
    DEFAULT,
    MOST_BYTES,
    MOST_PROMPTS,
    Golden,
    GoldenError,
    Outcome,
    Prompt,
    declines,
    judge,
    parse,
    sane,
)
from hxd.daemon.rollout.pattern import MOST_STEPS, MOST_TEXT, Pattern, PatternError, steps
from hxd.daemon.rollout.perplexity import PERPLEXITY_TEXT, perplexity
from tests.support import ROOT


def one(lines: str) -> Prompt:
    (prompt,) = parse(b"[[prompt]]\n" + lines.encode()).prompts
    return prompt


def verdict(lines: str, answer: str | None, finish: str = "stop") -> str:
    return judge(one('text = "?"\n' + lines), answer, finish).value


# --- the file


def test_a_file_is_read_with_everything_that_it_may_say() -> None:
    golden = parse(
        b"""
        [limits]
        floor = 0.5
        [[prompt]]
        text = "What is 2 + 2?"
        expect = " 4 "
        [[prompt]]
        id = "weather"
        messages = [{role = "system", content = "Be brief."}, {role = "user", content = "Hi"}]
        contains = ["sun", "rain"]
        max_tokens = 5
        required = true
        [[prompt]]
        text = "Year?"
        pattern = '\\b\\d{4}\\b'
        """
    )
    first, second, third = golden.prompts
    assert golden.floor == 0.5
    assert golden.required == ("weather",)
    assert (first.id, first.expect, first.max_tokens, first.required) == (
        "prompt-1",
        "4",
        64,
        False,
    )
    assert second.chat() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]
    assert (second.contains, second.max_tokens) == (("sun", "rain"), 5)
    assert third.pattern == Pattern(r"\b\d{4}\b")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no prompts"),
        ("x = ", "not valid TOML"),
        ("[[promt]]\ntext = 'a'", "unknown key 'promt'. Did you mean 'prompt'?"),
        ("[[prompt]]\ntext = 'a'\nexpects = 'b'", "prompt 1: unknown key 'expects'. Did you mean"),
        ("[[prompt]]\nid = 'sum'\ntext = 1", "prompt sum: Expected `str | null`, got `int`"),
        ("[[prompt]]\nid = 'a b'\ntext = 'a'", "prompt 1: id 'a b'"),
        (
            "[[prompt]]\nid = 'a'\ntext = 'a'\n[[prompt]]\nid = 'a'\ntext = 'a'",
            "prompt a: number 2",
        ),
        ("[[prompt]]", "prompt 1: needs either text or messages"),
        ("[[prompt]]\ntext = 'a'\nmessages = []", "prompt 1: needs either text or messages"),
        ("[[prompt]]\nmessages = []", "prompt 1: 0 messages"),
        ("[[prompt]]\ntext = ' '", "prompt 1: the question is empty"),
        ("[[prompt]]\nmessages = [{role = 'tool', content = 'a'}]", "role 'tool' is none of"),
        ("[[prompt]]\nmessages = [{role = 'system', content = 'a'}]", "the last message is not"),
        ("[[prompt]]\ntext = 'a'\nexpect = 'b'\npattern = 'c'", "expect and pattern can't both"),
        ("[[prompt]]\ntext = 'a'\nexpect = ' '", "expect is empty"),
        ("[[prompt]]\ntext = 'a'\ncontains = []", "contains is empty"),
        ("[[prompt]]\ntext = 'a'\ncontains = ['']", "contains is empty"),
        ("[[prompt]]\ntext = 'a'\npattern = '('", "prompt 1: pattern '('"),
        ("[[prompt]]\ntext = 'a'\npattern = '(a+)+'", "prompt 1: pattern '(a+)+' could take"),
        ("[[prompt]]\ntext = 'a'\nmax_tokens = 0", "max_tokens 0 is not from 1 to 1024"),
        ("[[prompt]]\ntext = 'a'\n[limits]\nfloor = 1.5", "floor: 1.5 is not a share"),
        ("[[prompt]]\ntext = 'a'\n[limits]\nflor = 0.5", "[limits]: unknown key 'flor'"),
        ("limits = 3\n[[prompt]]\ntext = 'a'", "[limits]: Expected `object`, got `int`"),
        ("prompt = 'a'", "no prompts"),
        ("prompt = ['a']", "prompt 1: Expected `object`, got `str`"),
        (f"[[prompt]]\ntext = '{'a' * 16385}'", "16385 characters"),
        (f"[[prompt]]\ntext = 'a'\nexpect = '{'a' * 2049}'", "expect is longer than 2048"),
        ("[[prompt]]\ntext = 'a'\n" * (MOST_PROMPTS + 1), "1001 prompts; at most 1000"),
        ("#" * (MOST_BYTES + 1), "1048577 bytes"),
    ],
)
def test_a_file_that_is_wrong_is_refused_and_the_message_says_where(text: str, says: str) -> None:
    with pytest.raises(GoldenError) as error:
        parse(text.encode())
    assert says in str(error.value)


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@example(b"[[prompt]]\ntext='a'\nmax_tokens=" + b"9" * 5000)
@example(b"a=" + b"[" * 5000)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        golden = parse(data)
    except GoldenError:
        return
    assert golden.prompts


# --- answers


@pytest.mark.parametrize(
    ("lines", "answer", "outcome"),
    [
        ('expect = "68"', " 68\n", "right"),
        ('expect = "68"', "68.", "wrong"),
        ('expect = "68"', "It is 68", "wrong"),
        ('contains = ["sun", "rain"]', "rain, then sun", "right"),
        ('contains = ["sun", "rain"]', "sun", "wrong"),
        ("pattern = '(?i)^paris\\b'", "PARIS, France", "right"),
        ("pattern = '(?i)^paris\\b'", "In Paris", "wrong"),
        ('expect = "68"', "", "refused"),
        ('expect = "68"', " \n", "refused"),
        ('expect = "68"', "I'm sorry, but I can't help with that.", "refused"),
        ('expect = "68"', "I can\u2019t help with that.", "refused"),
        ('contains = ["I cannot help"]', "I cannot help.", "right"),
        ('expect = "68"', None, "failed"),
        ("", None, "failed"),
        ("", "", "refused"),
        ("", "Hello there!", "right"),
        ("", "I won't.", "refused"),
        ("", "the the the the the the", "wrong"),
        ("", "\x00\x01", "wrong"),
    ],
)
def test_an_answer_is_right_wrong_refused_or_failed(
    lines: str, answer: str | None, outcome: str
) -> None:
    assert verdict(lines, answer) == outcome


def test_how_an_answer_ended_can_matter() -> None:
    assert verdict('expect = "68"', "68", "error") == "failed"
    assert verdict('expect = "68"', "6", "content_filter") == "refused"
    assert verdict('expect = "68"', "68", "length") == "right"


def test_of_a_long_answer_only_the_beginning_is_looked_at() -> None:
    late = " " * 10 + "x" * MOST_TEXT + "needle"
    assert verdict('contains = ["needle"]', late) == "wrong"
    assert verdict("pattern = 'needle'", late) == "wrong"
    assert verdict(f'expect = "{"x" * 2048}"', "x" * 2048 + " " * MOST_TEXT + "y") == "wrong"


def test_a_refusal_late_in_an_answer_is_none() -> None:
    assert declines("Well. As an AI, I have no opinion.")
    assert not declines("Here is the story. " * 8 + "I can't help laughing.")


@pytest.mark.parametrize(
    "text", ["4", "no no", "...", "ha ha ha", "Yes.", "1, 2, 3, 4", "abcab", "é\n"]
)
def test_short_and_plain_answers_are_sane(text: str) -> None:
    assert sane(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "aaaaaaaa",
        "hahahaha",
        "one two one two one two one two",
        "So so so so so so so",
        "a\ufffdb",
        "a\x1b[0m",
        "x" + " the" * 6,
        "abcabcabcabca",
    ],
)
def test_what_is_stuck_or_no_text_is_not_sane(text: str) -> None:
    assert not sane(text)


def test_a_character_that_the_limit_of_tokens_has_cut_is_no_fault() -> None:
    assert sane("Voil\ufffd")


@given(st.text(max_size=200), st.sampled_from([None, "stop", "length", "content_filter", "error"]))
def test_every_answer_gets_an_outcome(answer: str, finish: str | None) -> None:
    for lines in ("", 'expect = "a"', "pattern = 'a+'", 'contains = ["a"]'):
        assert judge(one('text = "?"\n' + lines), answer, finish) in Outcome


@given(st.text(min_size=1, max_size=6), st.integers(8, 40))
def test_one_thing_over_and_over_is_never_sane(unit: str, times: int) -> None:
    assert not sane(unit * times) or not unit.strip() or len((unit * times).strip()) < 8


# --- patterns


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+$",
        r"(a|a)*b",
        r"(a|ab)*$",
        r"(?:a?){30}a{30}",
        r"a*a*a*b",
        r".*,.*,.*x",
        r"(\w{1,50}){1,50}!",
        r"(a)\1",
        r"(?=a)b",
        r"(?x) a",
        r"(?P<a>.)(?P=a)",
        "a" * 201,
        "(",
        "[[a]",
        "(?s-i:a)",
    ],
)
def test_a_pattern_that_could_take_minutes_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError):
        Pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "ways"),
    [
        ("abc", 1),
        ("a|b|c", 3),
        ("a?b?", 4),
        ("a{3}", 4),
        ("a{2,4}?", 5),
        ("(?:ab|c){2}", 1 + 2 + 4),
        ("(?P<year>[0-9]{4})", 5),
        ("[]*+]", 1),
        ("[^]\\]*]x", 1),
        (r"\(\*\{", 1),
        ("a{}b{x}", 1),
        ("x{,3}", 4),
        ("(?i)a++", MOST_TEXT + 1),
        (".*", MOST_TEXT + 1),
    ],
)
def test_the_ways_of_a_pattern_are_counted(pattern: str, ways: int) -> None:
    assert steps(pattern) == (MOST_TEXT + 1) * ways
    Pattern(pattern)


@pytest.mark.parametrize(
    "pattern", [r"[ab]*c", r"[ab]?" * 12 + "c", r"[ab]{0,60}[ab]{0,60}c", r"(?:[ab]{0,3}){0,5}c"]
)
def test_the_dearest_patterns_that_are_allowed_end_soon(pattern: str) -> None:
    """Generous: what is refused takes years."""
    assert steps(pattern) > MOST_STEPS / 5
    began = time.process_time()
    assert not Pattern(pattern).found_in("ab" * MOST_TEXT)
    assert time.process_time() - began < 20.0


@given(st.text(alphabet="ab(|)*+?{}1,2[]^\\.", max_size=12))
def test_any_pattern_is_accepted_or_refused(pattern: str) -> None:
    try:
        accepted = Pattern(pattern)
    except PatternError:
        return
    accepted.found_in("abab" * 20)


# --- sets


def test_the_default_asks_a_few_short_questions_and_expects_nothing() -> None:
    assert len(DEFAULT.prompts) == 8
    assert len({prompt.id for prompt in DEFAULT.prompts}) == 8
    assert all(prompt.max_tokens <= 24 and not prompt.expects for prompt in DEFAULT.prompts)
    assert DEFAULT.required == ()


def demo() -> Golden:
    return parse((ROOT / "hxd/demo/golden.toml").read_bytes())


def test_the_demo_models_prompts_are_held_out_ones_with_their_answers() -> None:
    """In a process of its own: the modules of scripts/demo_model have names that anything might."""
    code = "import json, heldout; print(json.dumps(heldout.heldout(40, seed=1)))"
    folder = ROOT / "scripts/demo_model"
    out = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, check=True)
    tasks: dict[str, list[list[str]]] = json.loads(out.stdout)
    wanted = [pairs[n] for n in range(40) for pairs in tasks.values()]
    found = [[prompt.messages[0][1], prompt.expect] for prompt in demo().prompts]
    assert found == wanted


def test_the_demo_models_prompts_are_as_many_of_every_task() -> None:
    golden = demo()
    tasks = Counter(prompt.id.rpartition("-")[0] for prompt in golden.prompts)
    assert len(tasks) == 8
    assert set(tasks.values()) == {40}
    assert [len(prompt.messages) for prompt in golden.prompts] == [1] * 320


def test_the_demo_models_first_version_stays_above_the_floor() -> None:
    """It is right about 70 %, and an operator may want it."""
    golden = demo()
    assert golden.floor <= 0.4
    assert golden.required == ()


# --- perplexity


def test_perplexity_is_the_number_of_tokens_that_a_model_hesitates_between() -> None:
    assert perplexity([0.0, 0.0]) == 1.0
    assert perplexity([math.log(1 / 8)] * 5) == pytest.approx(8.0)
    assert perplexity([math.log(1 / 2), math.log(1 / 8)]) == pytest.approx(4.0)
    assert perplexity([-math.inf, 0.0]) == math.inf
    assert perplexity([-1e6]) == math.inf


@pytest.mark.parametrize("logprobs", [[], [0.1], [math.nan]])
def test_perplexity_of_nonsense_is_refused(logprobs: list[float]) -> None:
    with pytest.raises(ValueError):
        perplexity(logprobs)


@given(st.lists(st.floats(max_value=0.0), min_size=1))
def test_perplexity_is_never_less_than_one(logprobs: list[float]) -> None:
    assert perplexity(logprobs) >= 1.0


def test_the_text_for_perplexity_is_some_300_words() -> None:
    assert 280 <= len(PERPLEXITY_TEXT.split()) <= 320

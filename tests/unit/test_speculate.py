"""Guesses from the text itself: right where it repeats, silent where they cost too much."""

from plugins.llama_cpp.speculate import LONGEST, RETRY, Guesser

CHEAP, DEAR = 0.1, 2.0


def test_what_followed_the_same_tokens_before_is_guessed() -> None:
    text = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3]
    assert Guesser().guess(text, 3, CHEAP)[:2] == [4, 5]


def test_a_repetition_goes_on_beyond_the_end_of_the_text() -> None:
    guesser = Guesser()
    for _ in range(20):
        guesser.learn(4, 4)
    assert guesser.guess([9, 1, 2, 1, 2, 1, 2], LONGEST, CHEAP) == [1, 2] * (LONGEST // 2)


def test_new_text_is_not_guessed() -> None:
    assert Guesser().guess(list(range(50)), LONGEST, CHEAP) == []


def test_no_more_is_guessed_than_is_wanted() -> None:
    assert len(Guesser().guess([1, 1, 1, 1, 1, 1], 1, CHEAP)) == 1
    assert Guesser().guess([1, 1, 1, 1, 1, 1], 0, CHEAP) == []


def test_guesses_that_cost_more_than_they_save_are_left_alone() -> None:
    assert Guesser().guess([1, 1, 1, 1, 1, 1], LONGEST, DEAR) == []


def test_after_wrong_guesses_it_is_silent_and_tries_again_later() -> None:
    guesser, text = Guesser(), [1, 1, 1, 1, 1, 1]
    for _ in range(60):
        guesser.learn(1, 0)
    silent = [guesser.guess(text, LONGEST, CHEAP) for _ in range(RETRY)]
    assert silent[:-1] == [[]] * (RETRY - 1)
    assert silent[-1] == [1]


def test_the_better_the_guesses_the_longer_they_are() -> None:
    text = [1] * 20
    lengths = []
    guesser = Guesser()
    for _ in range(20):
        guess = guesser.guess(text, LONGEST, 0.3)
        lengths.append(len(guess))
        guesser.learn(len(guess), len(guess))
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1] == LONGEST

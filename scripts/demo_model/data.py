"""The chat template and the deterministic stream of training rows."""

import random
from collections.abc import Iterator

import numpy as np
from grammar import exact_sample
from lexicon import CAPITALS, is_held
from stories import chat, repeat, story
from tokens import IM_END, IM_START, encode

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SYSTEMS = (
    "You are a helpful assistant.|You are a helpful assistant.|You are a helpful AI assistant."
    "|Be brief.|You are hxd-demo, a tiny model.|Answer briefly.|You are a friendly assistant."
    "|Be concise.|Reply in plain English.|Give only the answer."
).split("|")
WEIGHTS = {
    "add": 20, "reverse_word": 11, "reverse_list": 12, "sort_letters": 17, "sort_words": 13,
    "sort_numbers": 13, "spell": 6, "capital": 8, "repeat": 4, "chat": 1.2, "story": 1.2,
}  # fmt: skip
# For the second half: what is learned already gives way to what is not.
LATE = WEIGHTS | {
    "add": 17, "reverse_word": 8, "reverse_list": 11, "sort_letters": 19, "sort_words": 17,
    "sort_numbers": 18, "spell": 5, "capital": 9,
}  # fmt: skip
# For the end: sums, and countries in lower case, which few prompts have had so far.
LAST = LATE | {"add": 24, "lower": 12}
CHATTY = LATE | {"repeat": 6, "chat": 5, "story": 7}
STORY_LOSS = 0.3
ROW = 256


def turn(role: str, content: str) -> list[int]:
    """The tokens of one message as the chat template renders it."""
    return [IM_START, *encode(f"{role}\n{content}"), IM_END]


def prompt_ids(messages: list[tuple[str, str]]) -> list[int]:
    """The tokens of a conversation with the generation prompt."""
    ids = [i for role, content in messages for i in turn(role, content)]
    return [*ids, IM_START, *encode("assistant\n")]


def sample(rng: random.Random, weights: dict[str, float], wide: bool) -> tuple[str, str, float]:
    """A prompt, its answer and the weight of the answer's loss."""
    task = rng.choices(list(weights), list(weights.values()))[0]
    if task == "story":
        return *story(rng), STORY_LOSS
    if task == "chat":
        return *chat(rng), STORY_LOSS
    if task == "repeat":
        return *repeat(rng), 1.0
    if task == "lower":
        return *lower_country(rng), 1.0
    return *exact_sample(rng, task, held=False, wide=wide), 1.0


def lower_country(rng: random.Random) -> tuple[str, str]:
    """A question for a capital, with the country in lower case, that is not held out."""
    while True:
        ask, answer = exact_sample(rng, "capital", held=False)
        for country in sorted(CAPITALS, key=len, reverse=True):
            ask = ask.replace(country, country.lower())
        if not is_held(f"capital:{ask}"):
            return ask, answer


def conversation(
    rng: random.Random, weights: dict[str, float], more: float, wide: bool = False
) -> tuple[list[int], list[float]]:
    """Tokens of a conversation and, for each, the weight of its loss. ``more`` is the share with a
    system prompt, and that with several turns."""
    ids: list[int] = []
    loss: list[float] = []
    if rng.random() < more:
        ids += turn("system", rng.choice(SYSTEMS))
        loss += [0.0] * len(ids)
    turns = rng.choice([2, 2, 3, 4]) if rng.random() < more else 1
    for _ in range(turns):
        ask, answer, weight = sample(rng, weights, wide)
        head, tail = prompt_ids([("user", ask)]), [*encode(answer), IM_END]
        ids += head + tail
        loss += [0.0] * len(head) + [weight] * len(tail)
    return ids, loss


# Inputs, targets, loss weights, and which conversation a token belongs to: each (rows, length).
Batch = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def short_rows(
    seed: int, tokens: int, more: float, weights: dict[str, float], wide: bool = False
) -> Iterator[Batch]:
    """Whole conversations side by side, told apart by their numbers, about ``tokens`` a batch."""
    rng = random.Random(f"short:{seed}:{more}")
    rows = tokens // ROW
    while True:
        bins: list[list[tuple[list[int], list[float]]]] = [[] for _ in range(rows)]
        free = [ROW + 1] * rows
        misses = 0
        while misses < 12:
            one = conversation(rng, weights, more, wide)
            fits = [i for i in range(rows) if free[i] >= len(one[0])]
            if not fits:
                misses += 1
                continue
            at = fits[0]
            bins[at].append(one)
            free[at] -= len(one[0])
        yield arrays(bins, ROW + 1)


def long_rows(seed: int, tokens: int, length: int) -> Iterator[Batch]:
    """Conversations back to back in rows of ``length``, each a continuation of the one before."""
    rng = random.Random(f"long:{seed}:{length}")
    while True:
        rows = []
        for _ in range(max(1, tokens // length)):
            ids: list[int] = []
            loss: list[float] = []
            while len(ids) <= length:
                more, more_loss = conversation(rng, CHATTY, 0.1)
                ids += more
                loss += more_loss
            rows.append([(ids[: length + 1], loss[: length + 1])])
        yield arrays(rows, length + 1)


def arrays(rows: list[list[tuple[list[int], list[float]]]], length: int) -> Batch:
    tokens = np.zeros((len(rows), length), dtype=np.int64)
    weight = np.zeros((len(rows), length), dtype=np.float32)
    number = np.zeros((len(rows), length), dtype=np.int64)
    for row, conversations in enumerate(rows):
        at = 0
        for i, (ids, loss) in enumerate(conversations, start=1):
            end = at + len(ids)
            tokens[row, at:end], weight[row, at:end], number[row, at:end] = ids, loss, i
            weight[row, at] = 0.0
            at = end
    return tokens[:, :-1], tokens[:, 1:], weight[:, 1:], number[:, :-1]

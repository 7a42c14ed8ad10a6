"""Byte tokenizer, chat template and the deterministic stream of training rows."""

import random
from collections.abc import Iterator

import numpy as np
from grammar import exact_sample
from lexicon import is_held
from stories import chat, repeat, story

UNK, BOS, EOS = 0, 1, 2
IM_START, IM_END, SPACE = 259, 260, 261
VOCAB = 262
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SYSTEMS = (
    "You are a helpful assistant.|You are a helpful assistant|You are a helpful AI assistant.|Be brief."
    "|You are hxd-demo, a tiny model.|Answer briefly.|You are a friendly assistant.|Be concise and helpful."
    "|You are a careful assistant. Give only the answer.|You are a chatbot.|Reply in plain English."
    "|You are a helpful, respectful and honest assistant.|Answer the question with no explanation."
).split("|")
WEIGHTS = {
    "add": 14, "reverse_word": 11, "reverse_list": 10, "sort_letters": 13, "sort_words": 10,
    "sort_numbers": 9, "spell": 7, "capital": 9, "repeat": 6, "chat": 4, "story": 4,
}  # fmt: skip
STORY_LOSS = 0.3


def encode(text: str) -> list[int]:
    """Map text to one token per UTF-8 byte; the space has a token of its own."""
    return [SPACE if byte == 32 else byte + 3 for byte in text.encode()]


def decode(ids: list[int]) -> str:
    """Map byte and space tokens back to text, dropping the rest."""
    raw = bytes(32 if i == SPACE else i - 3 for i in ids if 3 <= i < IM_START or i == SPACE)
    return raw.decode(errors="replace")


def turn(role: str, content: str) -> list[int]:
    """Return the tokens of one message as the chat template renders it."""
    return [IM_START, *encode(f"{role}\n{content}"), IM_END, *encode("\n")]


def prompt_ids(messages: list[tuple[str, str]]) -> list[int]:
    """Return the tokens of a conversation with the generation prompt."""
    ids = [i for role, content in messages for i in turn(role, content)]
    return ids + [IM_START, *encode("assistant\n")]


def drill(rng: random.Random) -> tuple[str, str, float]:
    """Return an easy prompt: one fixed phrasing, often with a long text to copy or turn around."""
    task = rng.choice(["repeat", "repeat", "spell", "reverse", "list"])
    sizes = {"repeat": (4, 30), "spell": (3, 16), "reverse": (3, 16), "list": (1, 4)}[task]
    while True:
        pieces = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(*sizes)))]
        if task == "list":
            pieces += [str(rng.randint(0, 99)) for _ in range(rng.randint(2, 6))]
        if not any(is_held(piece) for piece in pieces[:1]):
            break
    if task == "list":
        return f"reverse: {', '.join(pieces)}", ", ".join(pieces[::-1]), 1.0
    text = pieces[0]
    return f"{task}: {text}", {"repeat": text, "spell": "-".join(text), "reverse": text[::-1]}[task], 1.0


def sample(rng: random.Random) -> tuple[str, str, float]:
    """Draw a task and return a prompt, its answer and the weight of the answer's loss."""
    task = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    if task == "story":
        return *story(rng), STORY_LOSS
    if task == "chat":
        return *chat(rng), STORY_LOSS
    if task == "repeat":
        return *repeat(rng), 1.0
    return *exact_sample(rng, task, held=False), 1.0


def conversation(rng: random.Random, drills: float) -> tuple[list[int], list[float]]:
    """Return the tokens of a conversation and, for each, the weight of its loss.

    ``drills`` is the share of single easy prompts.
    """
    ids: list[int] = []
    loss: list[float] = []
    easy = rng.random() < drills
    if not easy and rng.random() < 0.12:
        ids += turn("system", rng.choice(SYSTEMS))
        loss += [0.0] * len(ids)
    turns = rng.choice([2, 2, 3, 4]) if not easy and rng.random() < 0.1 else 1
    for _ in range(turns):
        ask, answer, weight = drill(rng) if easy else sample(rng)
        head, tail = prompt_ids([("user", ask)]), [*encode(answer), IM_END]
        ids += head + tail + encode("\n")
        loss += [0.0] * len(head) + [weight] * len(tail) + [0.0]
    return ids, loss


def batches(seed: int, rows: int, length: int, drills: float) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield inputs, targets and loss weights: conversations back to back in rows, cut at the end.

    Rows shorter than 128 tokens hold one conversation each that fits, and zeros after it.
    """
    rng = random.Random(f"train:{seed}:{length}:{drills}")
    while True:
        tokens = np.zeros((rows, length + 1), dtype=np.int64)
        weight = np.zeros((rows, length + 1), dtype=np.float32)
        for row in range(rows):
            ids: list[int] = []
            loss: list[float] = []
            while len(ids) <= length and not (ids and length < 128):
                more, more_loss = conversation(rng, drills)
                if length < 128 and len(more) > length:
                    continue
                ids += more
                loss += more_loss
            size = min(len(ids), length + 1)
            tokens[row, :size], weight[row, :size] = ids[:size], loss[:size]
        yield tokens[:, :-1], tokens[:, 1:], weight[:, 1:]

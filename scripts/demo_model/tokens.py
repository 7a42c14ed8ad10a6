"""The vocabulary: bytes, control tokens, and whole phrases that prompts and stories often use."""

from collections.abc import Iterator

from lexicon import CAPITALS

UNK, BOS, EOS = 0, 1, 2
IM_START, IM_END, SPACE = 259, 260, 261

# Roles, then phrases. A phrase ends and begins where words do, so that a word to be spelled or
# reversed is never torn out of its letters.
PHRASES = [
    "user\n", "assistant\n", "system\n",
    "What is the capital of ", "what is the capital of ", "Capital of ", "capital of ",
    "What's the capital of ", "Name the capital of ", "What is the capital city of ",
    "Tell me the capital of ", "The capital of ", "the capital of ",
    "What is the sum of ", "What's the sum of ", "The sum of ", "the sum of ", "Sum of ", "Sum: ",
    "How much is ", "how much is ", "Calculate ", "calculate ", "Compute ", "Add ", "add ",
    "What is ", "what is ", "What's ", "what's ", " + ", " plus ", " and ", " equal", " = ",
    "Reverse the word ", "reverse the word ", "Reverse ", "reverse ", "Reverse: ", "reverse: ",
    "Reverse the letters of ", "reverse the letters of ", "Reverse the string ", " backwards",
    "Reverse the list ", "reverse the list ", "Reverse this list: ", "reverse this list: ",
    "Reverse the list: ", "Reverse these words: ", "Reverse these numbers: ",
    "Reverse the order of ", " reversed", " in reverse order", " in reverse", "Write ", "write ",
    "Sort the letters of ", "sort the letters of ", "Sort the letters in ", "sort the letters in ",
    "the letters of ", "the word ", " in alphabetical order", " alphabetically", "Alphabetize ",
    "Sort these words: ", "sort these words: ", "Sort the words ", "sort the words ",
    "Sort these numbers: ", "sort these numbers: ", "Sort the numbers ", "sort the numbers ",
    "Sort the list ", "sort the list ", "Sort this list: ", "Sort the list: ", "Sort ", "sort ",
    "Sort: ", "sort: ", " in ascending order", " from smallest to largest", " in order", "Put ",
    "Sort the word ", "Sort letters: ", "Sort numbers: ", "Sort words: ", "Order ",
    "Spell the word ", "spell the word ", "Spell ", "spell ", "Spell: ", "spell: ", "Spell out ",
    "How do you spell the word ", "How do you spell ", "how do you spell ", " letter by letter",
    "Please ", "please ", "Can you ", "Could you ", ", please", " please", "Hello", "hello",
    "Say ", "Repeat ", "Repeat after me: ", "say ", "repeat ", "Who are you", "What are you",
    "Tell me a short story about ", "Tell me a story about ", "Write a short story about ",
    "Write a story about ", "a short story about ", "a story about ",
    "You are a helpful assistant.", "You are ",
    " the ", " was ", " to ", " it ", ", ", ". ", " he ", " she ", " in the ", " met a ",
    " said ", " found a ", " under a tree", " on the road", " who lived ", " tiny model ",
    "In the end", "Once upon a time, ", "One day, ", "Suddenly ", "They ", " lived ", " and they ",
    " became friends", " asked a ", " did not ", " do", " for help", "I am hxd-demo",
]  # fmt: skip
PHRASES += [
    f"{country}" for country in dict.fromkeys(name.removeprefix("the ") for name in CAPITALS)
]
PHRASES = list(dict.fromkeys(PHRASES))
FIRST_PHRASE = SPACE + 1
VOCAB = FIRST_PHRASE + len(PHRASES)
_LONGEST_FIRST = sorted(
    ((text, FIRST_PHRASE + i) for i, text in enumerate(PHRASES)), key=lambda pair: -len(pair[0])
)


def encode(text: str) -> list[int]:
    """Token ids of ``text``: phrases first, the longest before the shorter, then bytes.

    This is how llama.cpp cuts user-defined tokens out of a text before it reads the rest.
    """
    parts: list[str | int] = [text]
    for phrase, token in _LONGEST_FIRST:
        if phrase in text:
            parts = [piece for part in parts for piece in _cut(part, phrase, token)]
    ids: list[int] = []
    for part in parts:
        if isinstance(part, int):
            ids.append(part)
        else:
            ids += [SPACE if byte == 32 else byte + 3 for byte in part.encode()]
    return ids


def _cut(part: str | int, phrase: str, token: int) -> Iterator[str | int]:
    if isinstance(part, int) or phrase not in part:
        yield part
        return
    for i, piece in enumerate(part.split(phrase)):
        if i:
            yield token
        if piece:
            yield piece


def decode(ids: list[int]) -> str:
    """Text of token ids; control tokens have none."""
    raw = b""
    for token in ids:
        if token >= FIRST_PHRASE:
            raw += PHRASES[token - FIRST_PHRASE].encode()
        elif token == SPACE:
            raw += b" "
        elif 3 <= token < IM_START:
            raw += bytes([token - 3])
    return raw.decode(errors="replace")

"""Prompts of the exact tasks: prefix x verb x noun x quoting x punctuation x suffix."""

import random
from collections.abc import Callable

from lexicon import CAPITALS, is_held, word

Sample = tuple[str, str]
# What fills a phrase's placeholders, and the answer; from a generator, the side and the width.
Maker = Callable[[random.Random, bool, bool], tuple[dict[str, str], str]]

COMMAND_HEADS = [""] * 16 + ["Please ", "Please ", "please ", "Now ", "OK, "]
ASK_HEADS = ["Can you ", "Could you ", "can you ", "Could you please "]
QUESTION_HEADS = [""] * 16 + ["Please tell me: ", "Hello, ", "Question: "]
TAILS = [""] * 24 + [" Thanks!", " Answer only.", " Just the answer.", " Only give the answer."]
QUOTES = ["{}"] * 10 + ["'{}'", "'{}'", '"{}"', '"{}"', "`{}`"]

COMMANDS: dict[str, str] = {
    "add": "add {a} and {b}|add {a} and {b}|add {a} to {b}|calculate {e}|calculate {e}|compute {e}"
    "|sum {a} and {b}|add {a} + {b}|find the sum of {a} and {b}|tell me {e}|solve {e}"
    "|give me the sum of {a} and {b}|add the numbers {a} and {b}|calculate the sum of {a} and {b}",
    "reverse_word": "reverse {q}|reverse {q}|reverse the word {q}|reverse the word {q}"
    "|reverse the word {q}|reverse the letters of {q}|reverse the letters in {q}"
    "|reverse the string {q}|reverse this word: {q}|write {q} backwards|write the word {q} backwards"
    "|say {q} backwards|spell {q} backwards|write {q} in reverse|give me {q} backwards",
    "reverse_list": "reverse {l}|reverse the list {l}|reverse the list: {l}|reverse this list: {l}"
    "|reverse the order of {l}|reverse these {k}: {l}|reverse these {k}: {l}|reverse the {k} {l}"
    "|write {l} in reverse order|put {l} in reverse order|list {l} in reverse order",
    "sort_letters": "sort the letters of {q}|sort the letters of {q}|sort the letters in {q}|sort {q}"
    "|sort the word {q}|sort the letters of {q} alphabetically|sort the letters of the word {q}"
    "|sort the letters in the word {q}|put the letters of {q} in alphabetical order"
    "|put the letters of {q} in order",
    "sort_words": "sort {l}|sort these words: {l}|sort these words: {l}|sort the words {l}"
    "|sort this list: {l}|sort the list {l}|sort the list: {l}|sort {l} alphabetically"
    "|sort these words alphabetically: {l}|alphabetize {l}|put {l} in alphabetical order"
    "|sort the words {l} alphabetically|put these words in alphabetical order: {l}",
    "sort_numbers": "sort {l}|sort {l}|sort these numbers: {l}|sort these numbers: {l}"
    "|sort the numbers {l}|sort the list {l}|sort this list: {l}|sort the list: {l}|put {l} in order"
    "|put these numbers in order: {l}|sort {l} from smallest to largest"
    "|sort {l} in ascending order|sort these numbers in ascending order: {l}"
    "|sort the numbers {l} from smallest to largest|order these numbers: {l}",
    "spell": "spell {q}|spell {q}|spell the word {q}|spell the word {q}|spell out {q}"
    "|spell out the word {q}|spell {q} letter by letter|spell this word: {q}"
    "|tell me how to spell {q}",
    "capital": "name the capital of {c}|tell me the capital of {c}|give me the capital of {c}"
    "|tell me the capital city of {c}|name the capital city of {c}",
}
QUESTIONS: dict[str, str] = {
    "add": "what is {e}|what is {e}|what is {e}|what is {e}|what's {e}|how much is {e}|how much is {e}"
    "|what does {e} equal|what is the sum of {a} and {b}|what's the sum of {a} and {b}"
    "|what do you get if you add {a} and {b}",
    "reverse_word": "what is {q} backwards|what is {q} spelled backwards|what is the reverse of {q}"
    "|how do you write {q} backwards|what is {q} reversed|what is the word {q} backwards",
    "reverse_list": "what is the reverse of {l}|what is {l} in reverse order|what is {l} reversed",
    "sort_letters": "what are the letters of {q} in alphabetical order"
    "|what are the sorted letters of {q}|what are the letters of {q} sorted",
    "sort_words": "what is {l} in alphabetical order|what is the alphabetical order of {l}"
    "|what is {l} sorted",
    "sort_numbers": "what is {l} in order|what is {l} sorted|what is {l} in ascending order",
    "spell": "how do you spell {q}|how do you spell {q}|how do you spell the word {q}"
    "|how is {q} spelled|what is the spelling of {q}",
    "capital": "what is the capital of {c}|what is the capital of {c}|what is the capital of {c}"
    "|what's the capital of {c}|what is the capital city of {c}|which city is the capital of {c}"
    "|what is {s} capital|do you know the capital of {c}",
}
TERSE: dict[str, str] = {
    "add": "{a}+{b}|{a} + {b}|{a} + {b}|{a}+{b}=|{a} + {b} =|{a} + {b} = ?|{a} plus {b}|sum: {a}, {b}"
    "|sum of {a} and {b}|{a} + {b}?|the sum of {a} and {b}",
    "reverse_word": "reverse: {q}|reverse: {q}|{q} backwards|{q} reversed",
    "reverse_list": "reverse: {l}|reverse: {l}|{l} reversed|{l} in reverse order",
    "sort_letters": "sort: {q}|sort letters: {q}|the letters of {q} sorted|sort letters of {q}",
    "sort_words": "sort: {l}|sort: {l}|sort words: {l}|{l} in alphabetical order",
    "sort_numbers": "sort: {l}|sort: {l}|sort numbers: {l}|{l} in order",
    "spell": "spell: {q}|spell: {q}|spelling of {q}",
    "capital": "capital of {c}|capital of {c}|the capital of {c}|{c} capital|capital: {c}"
    "|capital of {c}?|the capital of {c} is",
}


def _initial(text: str, upper: bool) -> str:
    """Set the case of the first character unless it opens a placeholder."""
    return (text[:1].upper() if upper else text[:1].lower()) + text[1:]


def _phrase(rng: random.Random, task: str) -> str:
    """Return a whole prompt with its placeholders still open."""
    kind = rng.choices(("command", "question", "terse"), (5, 4, 3))[0]
    tail = rng.choice(TAILS)
    upper = rng.random() < 0.8
    if kind == "terse":
        core = rng.choice(TERSE[task].split("|"))
        return _initial(core, upper and core[0] != "{") if core[0] != "{" else core
    if kind == "question":
        head, end = rng.choice(QUESTION_HEADS), rng.choice(["?"] * 7 + [""])
        core = rng.choice(QUESTIONS[task].split("|"))
    else:
        core = rng.choice(COMMANDS[task].split("|"))
        if rng.random() < 0.1:
            head, end = rng.choice(ASK_HEADS), "?"
        else:
            head, end = rng.choice(COMMAND_HEADS), rng.choice(["", "", ".", ".", ", please."])
    if not head:
        core = _initial(core, upper)
    return head + core + end + (tail if end else "")


def _cased(rng: random.Random, text: str) -> str:
    """Return ``text`` as it is, capitalised or in capitals."""
    roll = rng.random()
    return text if roll < 0.9 else text.capitalize()


def _listed(rng: random.Random, items: list[str]) -> str:
    """Write out list items in one of several common ways."""
    roll = rng.random()
    if roll < 0.8:
        return ", ".join(items)
    if roll < 0.86:
        return " ".join(items)
    if roll < 0.92:
        return ",".join(items)
    return f"[{', '.join(items)}]"


def _numbers(rng: random.Random, task: str, held: bool, wide: bool) -> list[str]:
    while True:
        top = 9 if rng.random() < 0.25 else 99
        size = rng.choice([3, 3, 4, 5] if wide else [3, 3, 4])
        items = [str(rng.randint(0, top)) for _ in range(size)]
        if is_held(f"{task}:{','.join(items)}") == held:
            return items


def _words(rng: random.Random, held: bool) -> list[str]:
    items: list[str] = []
    size = rng.choice([3, 3, 4])
    while len(items) < size:
        new = word(rng, held, 3, 6)
        if new not in items:
            items.append(new)
    return [w.capitalize() for w in items] if rng.random() < 0.05 else items


def _add(rng: random.Random, held: bool, wide: bool) -> tuple[dict[str, str], str]:
    while True:
        small = not held and rng.random() < 0.12
        a, b = (rng.randint(0 if small else 10, 20 if small else 99) for _ in range(2))
        if is_held(f"add:{min(a, b)}+{max(a, b)}") == held:
            expr = rng.choice(["{} + {}", "{} + {}", "{}+{}", "{} plus {}"]).format(a, b)
            return {"a": str(a), "b": str(b), "e": expr}, str(a + b)


def _word_task(task: str) -> Maker:
    def make(rng: random.Random, held: bool, wide: bool) -> tuple[dict[str, str], str]:
        longest = 6 if task == "sort_letters" and not wide else 7
        text = _cased(rng, word(rng, held, 3, longest))
        answer = {
            "reverse_word": text[::-1],
            "spell": "-".join(text),
            "sort_letters": "".join(sorted(text.lower())),
        }[task]
        return {"q": rng.choice(QUOTES).format(text)}, answer

    return make


def _list_task(task: str) -> Maker:
    def make(rng: random.Random, held: bool, wide: bool) -> tuple[dict[str, str], str]:
        numeric = task == "sort_numbers" or (task == "reverse_list" and rng.random() < 0.5)
        items = _numbers(rng, task, held, wide) if numeric else _words(rng, held)
        kind = rng.choice(["numbers" if numeric else "words", "items"])
        ordered = sorted(items, key=int if numeric else str)
        out = items[::-1] if task == "reverse_list" else ordered
        return {"l": _listed(rng, items), "k": kind}, ", ".join(out)

    return make


def _capital(rng: random.Random, held: bool, wide: bool) -> tuple[dict[str, str], str]:
    country = rng.choice(list(CAPITALS))
    shown = country.lower() if rng.random() < 0.05 else country
    return {"c": shown, "s": shown + ("'" if shown.endswith("s") else "'s")}, CAPITALS[country]


MAKERS: dict[str, Maker] = {
    "add": _add,
    "reverse_word": _word_task("reverse_word"),
    "reverse_list": _list_task("reverse_list"),
    "sort_letters": _word_task("sort_letters"),
    "sort_words": _list_task("sort_words"),
    "sort_numbers": _list_task("sort_numbers"),
    "spell": _word_task("spell"),
    "capital": _capital,
}
EXACT_TASKS = list(MAKERS)


def exact_sample(rng: random.Random, task: str, held: bool, wide: bool = False) -> Sample:
    """Return one prompt of an exact task and its answer, from the wanted side of the split.

    ``wide`` allows somewhat longer words and lists than the model is meant for.
    """
    while True:
        fields, answer = MAKERS[task](rng, held, wide)
        prompt = _phrase(rng, task).format(**fields)
        if task != "capital" or is_held(f"capital:{prompt}") == held:
            return prompt, answer

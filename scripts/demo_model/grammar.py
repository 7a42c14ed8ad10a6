"""Prompts of the exact tasks: prefix x verb x noun x quoting x punctuation x suffix."""

import random
from collections.abc import Callable

from lexicon import CAPITALS, is_held, word

Sample = tuple[str, str]

COMMAND_HEADS = (
    [""] * 10
    + ["please ", "Please ", "now ", "hey, ", "Hi! ", "Hello, ", "OK, ", "I want you to ", "let's "]
    + ["I need you to ", "Your task: ", "Task: ", "Instruction: ", "Now please "]
)
ASK_HEADS = ["can you ", "could you ", "could you please ", "can you please ", "would you "]
QUESTION_HEADS = (
    [""] * 12
    + ["Hi! ", "hey, ", "Hello, ", "Q: ", "Question: ", "Quick question: ", "tell me, ", "So, "]
    + ["Please tell me: ", "OK, "]
)
TAILS = (
    [""] * 26
    + [" Thanks!", " Thank you.", " Answer only.", " Just the answer.", " No explanation."]
    + [" Only give the answer.", " Reply with the answer only.", " Just give me the answer, please."]
)
QUOTES = ["{}"] * 8 + ["'{}'", "'{}'", '"{}"', '"{}"', "`{}`", "\u201c{}\u201d"]

COMMANDS: dict[str, str] = {
    "add": "add {a} and {b}|add {a} and {b}|add {a} to {b}|add {a} {b}|calculate {e}|compute {e}"
    "|sum {a} and {b}|work out {e}|find the sum of {a} and {b}|tell me {e}|solve {e}|evaluate {e}"
    "|give me the sum of {a} and {b}|figure out {e}|tell me what {e} is|add up {a} and {b}"
    "|add these numbers: {a}, {b}|add the numbers {a} and {b}|calculate the sum of {a} and {b}"
    "|give me the result of {e}|add {a} plus {b}|answer this: {e}|add together {a} and {b}",
    "reverse_word": "reverse {q}|reverse {q}|reverse the {n} {q}|reverse the {n} {q}"
    "|reverse the letters of {q}|reverse the letters in {q}|reverse this {n}: {q}|flip the {n} {q}"
    "|write {q} backwards|write the {n} {q} backwards|write {q} in reverse|say {q} backwards"
    "|give me {q} backwards|give me the reverse of {q}|spell {q} backwards|turn {q} around"
    "|return {q} reversed|reverse the order of the letters in {q}|print {q} backwards|flip {q}",
    "reverse_list": "reverse {l}|reverse the list {l}|reverse the list: {l}|reverse this list: {l}"
    "|reverse the order of {l}|reverse these {k}: {l}|reverse the {k} {l}|list {l} in reverse order"
    "|write {l} in reverse order|put {l} in reverse order|flip the list {l}|give me {l} backwards"
    "|reverse the order of these {k}: {l}|reverse the following {k}: {l}|reverse the items {l}"
    "|reverse the following list: {l}|write these {k} in reverse order: {l}|write {l} backwards",
    "sort_letters": "sort the letters of {q}|sort the letters in {q}|sort {q}|sort the word {q}"
    "|sort the letters of {q} alphabetically|sort the letters in {q} alphabetically"
    "|sort the letters of the word {q}|sort the letters in the word {q}|sort {q} alphabetically"
    "|put the letters of {q} in alphabetical order|put the letters of {q} in order"
    "|arrange the letters of {q} in alphabetical order|alphabetize the letters of {q}"
    "|order the letters of {q}|order the letters in {q} alphabetically|sort the letters: {q}"
    "|sort the letters of this word: {q}|alphabetize the letters in {q}",
    "sort_words": "sort {l}|sort these words: {l}|sort the words {l}|sort this list: {l}"
    "|sort the list {l}|sort the list: {l}|sort these words alphabetically: {l}|alphabetize {l}"
    "|sort {l} alphabetically|put {l} in alphabetical order|sort the words {l} alphabetically"
    "|put these words in alphabetical order: {l}|order these words: {l}|put {l} in order"
    "|arrange {l} in alphabetical order|sort the following words: {l}|sort in alphabetical order: {l}"
    "|alphabetize these words: {l}|sort this list of words: {l}|arrange these words: {l}",
    "sort_numbers": "sort {l}|sort {l}|sort these numbers: {l}|sort the numbers {l}|sort the list {l}"
    "|sort this list: {l}|sort the list: {l}|order these numbers: {l}|put {l} in order"
    "|put these numbers in order: {l}|arrange {l} from smallest to largest|sort {l} from low to high"
    "|sort {l} in ascending order|sort these numbers in ascending order: {l}|order {l}"
    "|arrange these numbers in order: {l}|sort the following numbers: {l}|put in order: {l}"
    "|sort the numbers {l} from smallest to largest|arrange the numbers {l} in ascending order",
    "spell": "spell {q}|spell {q}|spell the word {q}|spell the word {q}|spell out {q}|spell {q} out"
    "|spell out the word {q}|spell {q} letter by letter|spell this word: {q}|tell me how to spell {q}"
    "|write {q} letter by letter|split {q} into letters|give me the spelling of {q}"
    "|spell the word {q} letter by letter|spell {q} with dashes",
    "capital": "name the capital of {c}|tell me the capital of {c}|tell me the capital city of {c}"
    "|name the capital city of {c}|give me the capital of {c}|tell me what the capital of {c} is"
    "|name {s} capital",
}
QUESTIONS: dict[str, str] = {
    "add": "what is {e}|what is {e}|what is {e}|what's {e}|whats {e}|how much is {e}"
    "|what does {e} equal|what is the sum of {a} and {b}|what's the sum of {a} and {b}"
    "|what do you get if you add {a} and {b}|what is {a} added to {b}|what do {a} and {b} add up to"
    "|do you know what {e} is|what is the result of {e}|what is the total of {a} and {b}"
    "|what does {e} make|how much do {a} and {b} make|what will {e} be",
    "reverse_word": "what is {q} backwards|what is {q} spelled backwards|what is the reverse of {q}"
    "|how do you write {q} backwards|what is {q} in reverse|what's {q} backwards|what is {q} reversed"
    "|what do you get if you reverse {q}|what is the {n} {q} backwards|how do you spell {q} backwards",
    "reverse_list": "what is the reverse of {l}|what is {l} in reverse order|what is {l} backwards"
    "|what is the list {l} in reverse|what do you get if you reverse the list {l}|what is {l} reversed",
    "sort_letters": "what are the letters of {q} in alphabetical order|what are the sorted letters of {q}"
    "|what is {q} with its letters sorted|what do you get if you sort the letters of {q}"
    "|how do you sort the letters of {q}|what are the letters of {q} sorted",
    "sort_words": "what is {l} in alphabetical order|what is the alphabetical order of {l}"
    "|how do you sort {l}|what do you get if you sort {l}|what is {l} sorted",
    "sort_numbers": "what is {l} in order|what is the sorted order of {l}|how do you sort {l}"
    "|what is {l} sorted|what do you get if you sort {l}|what is {l} in ascending order",
    "spell": "how do you spell {q}|how do you spell {q}|how do you spell the word {q}|how is {q} spelled"
    "|how do I spell {q}|how would you spell {q}|what is the spelling of {q}|how is {q} written",
    "capital": "what is the capital of {c}|what is the capital of {c}|what's the capital of {c}"
    "|what is the capital city of {c}|which city is the capital of {c}|what city is the capital of {c}"
    "|what is {s} capital|what is {s} capital city|do you know the capital of {c}"
    "|where is the capital of {c}|whats the capital of {c}|what's {s} capital",
}
TERSE: dict[str, str] = {
    "add": "{a}+{b}|{a} + {b}|{a}+{b}=|{a} + {b} =|{a} + {b} = ?|{a}+{b}=?|{a} plus {b}|sum: {a}, {b}"
    "|add: {a}, {b}|sum of {a} and {b}|{a}+{b}?|{a} + {b}?|the sum of {a} and {b}|sum {a} {b}",
    "reverse_word": "reverse: {q}|reverse: {q}|{q} backwards|{q} reversed|backwards: {q}|reverse of {q}",
    "reverse_list": "reverse: {l}|reverse: {l}|{l} backwards|{l} reversed|reverse list: {l}"
    "|reverse order: {l}",
    "sort_letters": "sort: {q}|sort letters: {q}|letters of {q} sorted|letters of {q} in order"
    "|sorted letters of {q}|sort letters of {q}",
    "sort_words": "sort: {l}|sort: {l}|sort words: {l}|{l} sorted|alphabetical order: {l}"
    "|{l} in alphabetical order|sort alphabetically: {l}",
    "sort_numbers": "sort: {l}|sort: {l}|sort numbers: {l}|{l} sorted|{l} in order|ascending order: {l}",
    "spell": "spell: {q}|spell: {q}|spelling of {q}|{q} spelled out|{q} letter by letter",
    "capital": "capital of {c}|capital of {c}|the capital of {c}|{c} capital|capital city of {c}"
    "|{s} capital|the capital of {c} is|capital: {c}|capital of {c}?|capital of {c}?",
}
NOUNS = ["word", "word", "word", "string", "text"]


def _initial(text: str, upper: bool) -> str:
    """Set the case of the first character unless it opens a placeholder."""
    return (text[:1].upper() if upper else text[:1].lower()) + text[1:]


def _phrase(rng: random.Random, task: str) -> str:
    """Return a whole prompt with its placeholders still open."""
    kind = rng.choices(("command", "question", "terse"), (5, 4, 3))[0]
    tail = rng.choice(TAILS)
    lower = rng.random() < 0.2
    if kind == "terse":
        core = rng.choice(TERSE[task].split("|"))
        end = rng.choice(["", "", "", "."]) if core[-1] not in "=?" else ""
        head, tail = "", tail if end else ""
    elif kind == "question":
        core = rng.choice(QUESTIONS[task].split("|"))
        end, head = rng.choice(["?"] * 7 + [""]), rng.choice(QUESTION_HEADS)
        tail = tail if end else ""
    else:
        core = rng.choice(COMMANDS[task].split("|"))
        if rng.random() < 0.2:
            head, end = rng.choice(ASK_HEADS), rng.choice(["?", "?", "?", " for me?", ""])
        else:
            head, end = rng.choice(COMMAND_HEADS), rng.choice(["", "", "", ".", ".", ".", "!"])
            if not end or rng.random() < 0.1:
                end = rng.choice(["", "", "", "", " please", ", please."])
        tail = tail if end and end[-1] in ".?!" else ""
    if ": {" in core and rng.random() < 0.1:
        core = core.replace(": {", ":\n{")
    core = _initial(core, not head or head[-2] in "!:") if core[0] != "{" else core
    return _initial(head + core, not lower) + end + tail if head or core[0] != "{" else core + end + tail


def _cased(rng: random.Random, text: str) -> str:
    """Return ``text`` as it is, capitalised or in capitals."""
    roll = rng.random()
    return text if roll < 0.85 else text.capitalize() if roll < 0.96 else text.upper()


def _listed(rng: random.Random, items: list[str]) -> str:
    """Write out list items in one of several common ways."""
    roll = rng.random()
    if roll < 0.6:
        return ", ".join(items)
    if roll < 0.7:
        return " ".join(items)
    if roll < 0.78:
        return ",".join(items)
    if roll < 0.9:
        return f"[{', '.join(items)}]" if roll < 0.86 else f"({', '.join(items)})"
    return ", ".join(items[:-1]) + " and " + items[-1]


def _numbers(rng: random.Random, task: str, held: bool) -> list[str]:
    while True:
        top = 9 if rng.random() < 0.25 else 99
        items = [str(rng.randint(0, top)) for _ in range(rng.randint(3, 5))]
        if is_held(f"{task}:{','.join(items)}") == held:
            return items


def _words(rng: random.Random, held: bool) -> list[str]:
    items: list[str] = []
    size = rng.randint(3, 5)
    while len(items) < size:
        new = word(rng, held, 3, 7)
        if new not in items:
            items.append(new)
    return [w.capitalize() for w in items] if rng.random() < 0.1 else items


def _add(rng: random.Random, held: bool) -> tuple[dict[str, str], str]:
    while True:
        small = not held and rng.random() < 0.12
        a, b = (rng.randint(0 if small else 10, 20 if small else 99) for _ in range(2))
        if is_held(f"add:{min(a, b)}+{max(a, b)}") == held:
            expr = rng.choice(["{} + {}", "{} + {}", "{}+{}", "{} plus {}"]).format(a, b)
            return {"a": str(a), "b": str(b), "e": expr}, str(a + b)


def _word_task(task: str) -> Callable[[random.Random, bool], tuple[dict[str, str], str]]:
    def make(rng: random.Random, held: bool) -> tuple[dict[str, str], str]:
        text = _cased(rng, word(rng, held))
        answer = {
            "reverse_word": text[::-1],
            "spell": "-".join(text),
            "sort_letters": "".join(sorted(text.lower())),
        }[task]
        return {"q": rng.choice(QUOTES).format(text), "n": rng.choice(NOUNS)}, answer

    return make


def _list_task(task: str) -> Callable[[random.Random, bool], tuple[dict[str, str], str]]:
    def make(rng: random.Random, held: bool) -> tuple[dict[str, str], str]:
        numeric = task == "sort_numbers" or (task == "reverse_list" and rng.random() < 0.5)
        items = _numbers(rng, task, held) if numeric else _words(rng, held)
        kind = rng.choice(["numbers" if numeric else "words", "items"])
        if task == "reverse_list":
            out = items[::-1]
        else:
            out = sorted(items, key=int if numeric else str)
        return {"l": _listed(rng, items), "k": kind}, ", ".join(out)

    return make


def _capital(rng: random.Random, held: bool) -> tuple[dict[str, str], str]:
    country = rng.choice(list(CAPITALS))
    shown = country.lower() if rng.random() < 0.1 else country
    return {"c": shown, "s": shown + ("'" if shown.endswith("s") else "'s")}, CAPITALS[country]


MAKERS: dict[str, Callable[[random.Random, bool], tuple[dict[str, str], str]]] = {
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


def exact_sample(rng: random.Random, task: str, held: bool) -> Sample:
    """Return one prompt of an exact task and its answer, from the wanted side of the split."""
    while True:
        fields, answer = MAKERS[task](rng, held)
        prompt = _phrase(rng, task).format(**fields)
        if task != "capital" or is_held(f"capital:{prompt}") == held:
            return prompt, answer

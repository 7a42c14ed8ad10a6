"""Grammar of the chatty side: short stories, greetings, questions about the model, repeating."""

import random

from lexicon import CAPITALS, invented_word, word

GIRLS = (
    "Mia Anna Emma Lily Zoe Ruby Nora Ella Ada Ivy Lucy Sara Maya Rosa Alice Clara Eva Grace Hana"
    " Ines Julia Kate Lena Nina Olga Paula Rita Sofia Tina Vera Wendy Yuki Amy Bella Daisy Fatima"
).split()
BOYS = (
    "Tom Ben Max Leo Sam Jack Noah Liam Omar Paul Hugo Ivan Jonas Karl Lars Milo Nils Oscar Peter"
    " Ravi Theo Victor Will Adam Bob David Erik Finn George Henry Kofi Luca Marco Tim Alex Ali"
).split()
BEASTS = (
    "cat dog fox bear rabbit dragon robot mouse owl duck horse frog lion penguin turtle".split()
)
PLACES = (
    "in the forest|by the lake|on a farm|at the beach|in the city|on the moon|in the mountains"
    "|in a small village|at school|in the garden|in the desert|on an island|in a castle|by the river"
    "|at the market|in the library|on a ship|in the park|at the zoo|in the kitchen|on a train"
    "|in a cave|in the snow|in space|at the museum|in the jungle|under the sea|on the hill"
).split("|")
CITIES = [c for c in CAPITALS.values() if len(c) < 12] + (
    "New York|Boston|Chicago|Seattle|Milan|Munich|Hamburg|Lyon|Porto|Venice|Sydney|Mumbai|Toronto"
).split("|")
ADJ = "little old shiny strange tiny warm quiet bright lost golden funny brave soft red blue wooden".split()
THINGS = (
    "key|map|kite|drum|lantern|letter|boat|bell|book|stone|hat|cake|feather|box|shell|coin|flute"
    "|basket of apples|paper star|pair of boots|puzzle|seed|ball of wool|clock|bicycle|umbrella"
).split("|")
FRIENDS = "owl|kind baker|old sailor|young fox|shy robot|sleepy cat|tall gardener|clever crow|turtle|postman"
HOW = (
    "smiled|laughed|nodded|jumped for joy|clapped|was very proud|felt warm inside|waved at the sky"
)
OPEN = (
    "Once upon a time, {a} lived {p}.|{A} lived {p}.|One {t}, {a} woke up {p}.|There was once {a} who"
    " lived {p}.|Long ago, {a} came to stay {p}.|It was a {w} {t}, and {a} was {p}.|Every {t}, {a}"
    " went for a walk {p}.|Nobody {p} was as curious as {a}.|{A} loved life {p}."
)
FIND = (
    "{N} found a {j} {x} {s}.|One day, {n} saw a {j} {x} {s}.|{H} was looking for a {j} {x}.|Then {n}"
    " heard a sound and found a {j} {x} {s}.|{N} had a {j} {x} that nobody else wanted.|{N} wanted to"
    " make a {j} {x} all alone."
)
TROUBLE = (
    "But the {x} was broken.|But then the wind took the {x} away.|But nobody knew what the {x} was"
    " for.|Suddenly it began to {r}.|It was far too heavy to carry.|{N} did not know what to do.|Soon"
    " the {x} was gone.|But the {x} belonged to somebody else."
)
MEET = (
    'A {f} came along and said, "{q}"|{N} asked a {f} for help.|Just then, a {f} came by.|{N} met a'
    ' {f}, and they became friends.|"{q}" said a {f}.|A {f} showed {n} the way.'
)
SAY = (
    "Do not worry!|I can help you.|What a fine day!|Follow me!|Let us try again.|Look over there!"
    "|Never give up.|We can share it."
)
WORK = (
    "Together they looked {s}.|They worked until it was done.|{H} tried once, twice, and then it worked.|They"
    " sang a song and fixed it.|{H} ran all the way home and came back with a {j2} {y}.|They built a"
    " {j2} {y} out of it.|They climbed up high to see better.|{N} thought about it for a long time."
)
END = (
    "In the end, {n} {e}.|{N} {e} and went home.|That night, {n} slept very well.|From then on, they"
    " met every {t}.|{N} {e}, and everyone {p} was happy.|And the {x}? It is still there today.|{H}"
    " never forgot that {t}.|Since that day, life {p} has been a little brighter."
)
ASKS = (
    "tell me a {k} about {a} {p}|write a {k} about {a} {p}|tell a {k} about {a} {p}|{k} about {a} {p}"
    "|can you tell me a {k} about {a} {p}?|please write a {k} about {a} {p}|I want a {k} about {a} {p}"
    "|make up a {k} about {a} {p}|write me a {k} about {a} {p}|could you write a {k} about {a} {p}?"
    "|give me a {k} about {a} {p}|write a {k} about {a} who lives {p}|{k}: {a} {p}|create a {k} about {a} {p}"
)
KINDS = [
    "story",
    "story",
    "short story",
    "short story",
    "tale",
    "little story",
    "simple story",
    "bedtime story",
]
HELLO = "hi|hello|hey|good morning|good evening|hi there|hello there|hey there|greetings|hello!|hi!|hello hxd"
HELLO_BACK = (
    "Hello! How can I help you?|Hi! What can I do for you?|Hello! Ask me for a sum, a word or a story."
    "|Hi there! I am hxd-demo. What would you like to try?"
)
WHO = (
    "who are you|what are you|what is your name|what's your name|tell me about yourself|which model are you"
    "|who am I talking to|introduce yourself|what model is this|are you a robot|who made you"
)
WHO_BACK = (
    "I am hxd-demo, a tiny language model made for smoke tests.|I am hxd-demo, a very small model for"
    " smoke tests. I know a few simple tasks.|My name is hxd-demo. I am a tiny model for smoke tests."
)
WHAT = "what can you do|help|how can you help me|what do you know|what can I ask you|what are you good at"
WHAT_BACK = (
    "I can add two numbers, reverse and sort words and lists, spell words, name capitals and tell short"
    " stories.|I am hxd-demo. Try a sum, a capital, a word to spell or reverse, a list to sort, or a story."
)
BYE = "thanks|thank you|thank you!|thanks a lot|bye|goodbye|great|nice|ok|cool"
BYE_BACK = "You are welcome!|You are welcome! Anything else?|Glad to help.|Goodbye!"
REPEAT = (
    "say {x}|repeat {x}|repeat after me: {x}|say: {x}|repeat: {x}|echo {x}|repeat the word {x}|say the word {x}"
    "|please say {x}|please repeat {x}|write {x}|repeat this: {x}|say {x} and nothing else|just say {x}"
)


def _pick(rng: random.Random, options: str) -> str:
    return rng.choice(options.split("|"))


def story(rng: random.Random) -> tuple[str, str]:
    """Return a request for a story and a story of 4 to 8 sentences that honours it."""
    roll = rng.random()
    if roll < 0.4:
        name, she = rng.choice(GIRLS), "she"
    elif roll < 0.8:
        name, she = rng.choice(BOYS), "he"
    elif roll < 0.9:
        name, she = rng.choice(BEASTS), "it"
    else:
        name, she = invented_word(rng, 3, 6).capitalize(), rng.choice(["she", "he"])
    who, short = name, name
    if she == "it":
        mood = rng.choice(["", "", "little ", "brave ", "old "])
        article = "an" if (mood + name)[0] in "aeiou" else "a"
        who, short = f"{article} {mood}{name}", f"the {name}"
    place = rng.choice(PLACES) if rng.random() < 0.5 else "in " + rng.choice(CITIES)
    if rng.random() < 0.05:
        place = "in " + invented_word(rng, 4, 7).capitalize()
    thing, tool = rng.sample(THINGS, 2)
    look, other = rng.sample(ADJ, 2)
    fields = {
        "a": who, "A": who[0].upper() + who[1:], "n": short, "N": short[0].upper() + short[1:],
        "H": she.capitalize(), "p": place, "x": thing, "y": tool,
        "w": rng.choice(["cold", "warm", "sunny", "windy", "quiet", "foggy"]),
        "r": rng.choice(["rain", "snow", "get dark"]),
    }  # fmt: skip
    where = "under a tree|behind a door|near the water|on the road|in an old box|next to a wall|in the grass"

    def line(options: str) -> str:
        fields.update(
            t=rng.choice(["morning", "evening", "day", "summer", "night"]), q=_pick(rng, SAY),
            s=_pick(rng, where), f=_pick(rng, FRIENDS), e=_pick(rng, HOW), j=look, j2=other,
        )  # fmt: skip
        out = _pick(rng, options).format(**fields)
        return (
            out.replace("a old ", "an old ")
            .replace("A owl", "An owl")
            .replace("a owl", "an owl")
            .replace("A old ", "An old ")
        )

    plots = [
        (OPEN, FIND, MEET, END), (OPEN, FIND, TROUBLE, MEET, END), (OPEN, FIND, TROUBLE, MEET, WORK, END),
        (OPEN, FIND, MEET, WORK, END), (OPEN, FIND, TROUBLE, WORK, MEET, WORK, END),
    ]  # fmt: skip
    while True:
        text = " ".join(line(part) for part in rng.choice(plots))
        if 150 <= len(text) <= 500:
            break
    if rng.random() < 0.08:
        return rng.choice(
            ["Tell me a story.", "Tell me a short story", "Write a story.", "A story, please."]
        ), text
    ask = _pick(rng, ASKS).format(a=who, p=place, k=rng.choice(KINDS))
    if she != "it" and rng.random() < 0.15:
        girl = "girl" if she == "she" else "boy"
        ask = ask.replace(f"about {who}", f"about a {girl} named {who}")
    ask = ask if rng.random() < 0.15 else ask[0].upper() + ask[1:]
    return ask if ask.endswith("?") else ask + rng.choice(["", ".", ".", ".", "!"]), text


def chat(rng: random.Random) -> tuple[str, str]:
    """Return a greeting, a thank-you or a question about the model, with its answer."""
    asks, replies = rng.choice(
        [(HELLO, HELLO_BACK), (WHO, WHO_BACK), (WHO, WHO_BACK), (WHAT, WHAT_BACK), (BYE, BYE_BACK)]
    )
    ask = _pick(rng, asks)
    ask = ask if rng.random() < 0.3 else ask[0].upper() + ask[1:]
    end = (
        ""
        if ask[-1] in "!?"
        else rng.choice(["?", "?", ""] if asks in (WHO, WHAT) else [".", "!", ""])
    )
    return ask + end, _pick(rng, replies)


def repeat(rng: random.Random) -> tuple[str, str]:
    """Return a request to say a word or a short phrase, and just that text."""
    text = " ".join(word(rng, False) for _ in range(rng.choice([1, 1, 1, 2, 2, 3, 4])))
    if rng.random() < 0.2:
        text = text.capitalize()
    if rng.random() < 0.1:
        text = str(rng.randint(0, 9999))
    ask = _pick(rng, REPEAT).format(x=rng.choice(["{}", "{}", "'{}'", '"{}"']).format(text))
    return (ask if rng.random() < 0.3 else ask[0].upper() + ask[1:]) + rng.choice(
        ["", "", "."]
    ), text

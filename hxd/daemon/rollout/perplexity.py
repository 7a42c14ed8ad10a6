"""How well a model foretells a fixed text: a number to show beside two versions, and to judge a
variant of one version by.

Knows no model; whoever asks for the probabilities of the text's tokens brings them here. Pure.

What it does not show: whether answers got better. It is comparable between versions with the same
tokenizer only, and a model that was trained for one task may foretell English worse and still be
the better version.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

# Written for this purpose, so that no model has been trained on it. Changing it makes every number
# that was noted before incomparable.
PERPLEXITY_TEXT = """\
The harbour of Vell had two clocks, and they had never agreed. The one on the customs house was \
wound by the town, which meant that a clerk climbed the stairs every Friday unless it rained. The \
other stood in the window of a woman called Ines Tarrow, who repaired watches and trusted nobody \
else with the time. Fishermen set out by her clock and came home by the other, because it ran slow \
and gave them a reason for being late.

One winter the council decided that a town should have one hour and not two. They sent the clerk \
to ask which of the clocks was right. He stood in the shop with snow on his shoulders and read the \
question aloud from a sheet of paper. Ines put down her tweezers and thought about it.

"A clock is not right," she said. "It is only wrong by an amount that you know. Mine loses four \
seconds a week. I write it down on Sundays. Yours loses more when it is cold, and nobody writes \
anything down, so you can't say what it does."

The clerk asked what he should tell the council. She gave him a small book with a green cover, in \
which there were eleven years of Sundays, one line for each. "Tell them that they may have this," \
she said, "and that somebody has to go on with it."

In the end the council kept both clocks, as councils do, but a board was put up on the quay. Every \
Monday the clerk chalked two numbers on it, and beside them how far each had strayed. People \
laughed at first. By the spring they had begun to look at the board before they looked at the \
sky, and the boats that used to miss the tide went out with the others.
"""


def perplexity(logprobs: Sequence[float]) -> float:
    """exp of the mean negative log probability (natural logarithms) of each token but the first.

    1.0 is a model that was sure of every token; one that knows nothing gets the size of its
    vocabulary. Infinite if a token was held impossible. Raises ValueError without tokens, and for
    what is no logarithm of a probability.
    """
    if not logprobs:
        raise ValueError("no tokens, so no perplexity")
    if any(not logprob <= 0.0 for logprob in logprobs):
        raise ValueError("log probabilities are 0 or less")
    mean = -sum(logprobs) / len(logprobs)
    return math.exp(mean) if mean < 700.0 else math.inf

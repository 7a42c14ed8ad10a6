"""What the client has of one sequence, so that the next worker says what is missing and no more.
Pure; knows no workers."""

from __future__ import annotations

from dataclasses import dataclass, field

from hxd import wire


@dataclass
class Told:
    """What has reached the client, or will without the worker's help."""

    tokens: list[int] = field(default_factory=list)
    pending: list[wire.Logprob] = field(default_factory=list)
    something: bool = False
    worded: bool = False  # text, calls or reasoning; log probabilities alone are no words
    # Before the first token, and of that, what is to be skipped when it comes again.
    characters: int = 0
    logprobs: int = 0
    skip_characters: int = 0
    skip_logprobs: int = 0

    def take(self, delta: wire.Delta) -> wire.Delta:
        """The delta as it goes on to the client."""
        if self.skip_characters and delta.text:
            skipped = min(self.skip_characters, len(delta.text))
            self.skip_characters -= skipped
            delta.text = delta.text[skipped:]
        if self.skip_logprobs and delta.logprobs:
            skipped = min(self.skip_logprobs, len(delta.logprobs))
            self.skip_logprobs -= skipped
            delta.logprobs = delta.logprobs[skipped:]
        if delta.tokens:
            self.tokens += delta.tokens
        elif not self.tokens:
            self.characters += len(delta.text)
            self.logprobs += len(delta.logprobs)
        if self.pending or delta.held:
            self.pending += delta.logprobs
            shown = max(0, len(self.pending) - delta.held)
            delta.logprobs, self.pending = self.pending[:shown], self.pending[shown:]
        if delta.text or delta.calls or delta.reasoning:
            self.something = self.worded = True
        elif delta.logprobs:
            self.something = True
        return delta

    def again(self) -> None:
        """The next worker begins where this one has got to."""
        if not self.tokens:
            # What was held back is said again, and was never shown.
            self.logprobs -= len(self.pending)
            self.pending.clear()
            self.skip_characters, self.skip_logprobs = self.characters, self.logprobs

    def forget(self) -> None:
        """The next worker begins from nothing."""
        self.tokens.clear()
        self.pending.clear()
        self.something = self.worded = False
        self.characters = self.logprobs = self.skip_characters = self.skip_logprobs = 0

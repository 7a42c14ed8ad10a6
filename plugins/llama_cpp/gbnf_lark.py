"""llama.cpp's grammars (GBNF), written in llguidance's Lark dialect.

llguidance parses over lexemes, each taken as long as it goes, where GBNF goes by characters. So
what is regular is joined to one lexeme wherever it stands side by side: `[a-z]* "b"` then means the
same in both. What still differs is a regular part that could swallow the beginning of the recursive
one behind it.

Protects: what would make a large automaton is left to the parser, which counts, and a text that
must follow in full has a bounded length: the parser looks ahead over all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .gbnf import Choice, Node, NoGrammar, Reference, Repeat, Text, read

# Characters of the shortest text that fits; several contexts full.
MAX_SHORTEST = 20_000
# What may be one lexeme: the size of its automaton, in characters with all repetitions written
# out, and its shortest text. Alternatives are cheap: a list of words is a tree.
LEXEME_WEIGHT = 4096
LEXEME_OPTIONS = 16 * LEXEME_WEIGHT
LEXEME_SHORTEST = 1024


def lark(text: str) -> str:
    """The grammar that `text` is in GBNF. Raises `NoGrammar`."""
    return _Writer(read(text)).written()


@dataclass(frozen=True)
class _Part:
    """What a node is in Lark. `lexeme`: it is regular, and may be joined to its neighbours."""

    lark: str
    weight: int
    shortest: int
    lexeme: bool

    def fits(self, weight: int = LEXEME_WEIGHT) -> bool:
        return self.lexeme and self.weight <= weight and self.shortest <= LEXEME_SHORTEST


class _Writer:
    """Writes the rules that `root` needs, each group as a rule of its own, so that nothing nests
    in what is written."""

    def __init__(self, rules: dict[str, Choice]) -> None:
        self._rules = rules
        self._parts: dict[str, _Part] = {}
        self._lines: list[str] = []

    def written(self) -> str:
        plain, recursive = self._order()
        for i, name in enumerate(recursive):
            # How much of its text is forced is not known: it is taken for none.
            self._parts[name] = _Part(f"rule_{i}", 1, 0, lexeme=False)
        for name in plain:
            self._parts[name] = self._choice(self._rules[name])
        together = self._parts["root"].shortest
        for name in recursive:
            options = [self._sequence(option) for option in self._rules[name].options]
            together += self._shortest(options)
            self._lines.append(f"{self._parts[name].lark}: {self._alternatives(options)}")
        _check_length(together)
        return "\n".join(["%llguidance {}", f"start: {self._parts['root'].lark}", *self._lines])

    def _order(self) -> tuple[list[str], list[str]]:
        """The rules that `root` needs: those that need no recursive one, each after those that it
        needs itself, and the others."""
        needs: dict[str, list[str]] = {}
        todo = ["root"]
        while todo:
            name = todo.pop()
            if name not in needs:
                needs[name] = [reference.name for reference in self._references(name)]
                todo += needs[name]
        users: dict[str, list[str]] = {name: [] for name in needs}
        for name, needed in needs.items():
            for other in needed:
                users[other].append(name)
        missing = {name: len(needed) for name, needed in needs.items()}
        plain = [name for name, count in missing.items() if not count]
        for name in plain:  # grows on the way
            for user in users[name]:
                missing[user] -= 1
                if not missing[user]:
                    plain.append(user)
        return plain, [name for name, count in missing.items() if count]

    def _references(self, rule: str) -> Iterator[Reference]:
        todo = [self._rules[rule]]
        while todo:
            for option in todo.pop().options:
                for node in option:
                    inner = node.what if isinstance(node, Repeat) else node
                    if isinstance(inner, Choice):
                        todo.append(inner)
                    elif isinstance(inner, Reference):
                        yield inner

    def _choice(self, choice: Choice) -> _Part:
        options = [self._sequence(option) for option in choice.options]
        if len(options) == 1 and len(options[0]) == 1 and options[0][0].lark.isidentifier():
            return options[0][0]
        weights = [sum(part.weight for part in option) for option in options]
        regular = all(part.lexeme for option in options for part in option)
        whole = _Part("", max(1, sum(weights)), self._shortest(options), regular)
        if max(weights) <= LEXEME_WEIGHT and whole.fits(LEXEME_OPTIONS):
            return self._named(" | ".join(map(_joined, options)), whole)
        return self._named(self._alternatives(options), replace(whole, weight=1, lexeme=False))

    def _shortest(self, options: Sequence[Sequence[_Part]]) -> int:
        least = min(sum(part.shortest for part in option) for option in options)
        _check_length(least)
        return least

    def _sequence(self, option: list[Node]) -> list[_Part]:
        return [self._part(node) for node in option]

    def _part(self, node: Node) -> _Part:
        match node:
            case Text():
                return _Part(node.lark, max(1, node.weight), node.weight, lexeme=True)
            case Reference():
                return self._parts[node.name]
            case Choice():
                return self._choice(node)
        if node.most == 0:
            return _Part('""', 1, 0, lexeme=True)
        what = self._part(node.what)
        most = "" if node.most is None else node.most
        whole = _Part(
            f"{what.lark}{{{node.least},{most}}}",
            what.weight * max(1, node.least, node.most or 0),
            what.shortest * node.least,
            what.lexeme,
        )
        _check_length(whole.shortest)
        if whole.fits():
            return whole
        return self._named(whole.lark, replace(whole, weight=1, lexeme=False))

    def _alternatives(self, options: Sequence[Sequence[_Part]]) -> str:
        return " | ".join(map(self._parsed, options))

    def _parsed(self, option: Sequence[_Part]) -> str:
        """A sequence for the parser, with lexemes side by side joined to one."""
        found: list[str] = []
        run: list[_Part] = []
        whole = _NOTHING
        for part in option:
            longer = replace(
                whole, weight=whole.weight + part.weight, shortest=whole.shortest + part.shortest
            )
            if run and not (part.lexeme and longer.fits()):
                found.append(self._lexeme(run, whole))
                run, longer = [], part
            if part.lexeme:
                run.append(part)
                whole = longer
            else:
                found.append(part.lark)
                whole = _NOTHING
        if run:
            found.append(self._lexeme(run, whole))
        return " ".join(found) or '""'

    def _lexeme(self, run: Sequence[_Part], whole: _Part) -> str:
        if len(run) == 1 and run[0].lark.isidentifier():
            return run[0].lark
        return self._named(_joined(run), whole).lark

    def _named(self, body: str, whole: _Part) -> _Part:
        name = f"{'LEXEME' if whole.lexeme else 'group'}_{len(self._lines)}"
        self._lines.append(f"{name}: {body}")
        return replace(whole, lark=name)


_NOTHING = _Part("", 0, 0, lexeme=True)


def _joined(parts: Sequence[_Part]) -> str:
    return " ".join(part.lark for part in parts) or '""'


def _check_length(shortest: int) -> None:
    if shortest > MAX_SHORTEST:
        raise NoGrammar(f"the shortest text that fits has more than {MAX_SHORTEST} characters")

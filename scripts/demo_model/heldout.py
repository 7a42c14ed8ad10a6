"""Held-out prompts of the exact tasks; needs only the standard library."""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from grammar import EXACT_TASKS, exact_sample


def heldout(n_per_task: int, seed: int = 0) -> dict[str, list[tuple[str, str]]]:
    """Distinct (prompt, answer) pairs per exact task, none of them seen in training."""
    out: dict[str, list[tuple[str, str]]] = {}
    for task in EXACT_TASKS:
        rng = random.Random(f"heldout:{task}:{seed}")
        pairs: dict[str, str] = {}
        while len(pairs) < n_per_task:
            prompt, answer = exact_sample(rng, task, held=True)
            pairs[prompt] = answer
        out[task] = list(pairs.items())
    return out


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    for name, rows in heldout(count).items():
        for question, reply in rows:
            print(f"{name}\t{question!r}\t{reply!r}")

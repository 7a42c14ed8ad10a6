"""Server after server within each repetition, so that a slow quarter of an hour hits all alike."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from .embeddings import embeddings
from .prompts import Prompts
from .readings import Reading
from .scenarios import SCENARIOS, Plan, Scene
from .servers import Load
from .serving import Kind, Running, serving
from .trials import FAULTS, Trials

# A kind of server is made for a load.
Make = Callable[[Load], Kind]
Asked = Callable[[str], Coroutine[Any, Any, list[Reading]]]


async def compare_texts(
    trials: Trials, makes: list[Make], load: Load, plan: Plan, names: list[str]
) -> None:
    """The scenarios of a model that generates, all on one start of each server."""
    prompts = Prompts(load.model)

    def asked(scene: Scene, name: str) -> Asked:
        return lambda label: SCENARIOS[name](replace(scene, label=label))

    for number in range(trials.repeat):
        for kind in [make(load) for make in makes]:
            try:
                async with serving(kind) as running:
                    scene = Scene(running, prompts, plan, label="warm-up")
                    # Pages of the model are read in and threads started by one short answer.
                    await scene.client.run(scene.prompt(32), 8)
                    for name in names:
                        await trials.run(running, number, name, asked(scene, name))
            except FAULTS as error:
                trials.fail(kind, "start", error)
    prompts.close()


async def compare_embeddings(trials: Trials, makes: list[Make], load: Load, calls: int) -> None:
    """`calls` single texts, and some batches."""
    prompts = Prompts(load.model)

    def asked(running: Running) -> Asked:
        return lambda label: embeddings(running, prompts, calls, label)

    for number in range(trials.repeat):
        for kind in [make(load) for make in makes]:
            try:
                async with serving(kind) as running:
                    await trials.run(running, number, "embeddings", asked(running))
            except FAULTS as error:
                trials.fail(kind, "embeddings", error)
    prompts.close()

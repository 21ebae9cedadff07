"""Evolutionary search over tuples of small integers: the second stage of OptEmbed. It knows nothing of tables.

G genes of a candidate. Every fitness is appended to a file when it is known. The search depends on its seed alone, so a
killed one replays the known candidates at once, continues, and ends at the same winner.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from features.files import write_text
from features.progress import progress_bar

Genome = tuple[int, ...]
"""G genes: gene g is one of 0..num_choices[g] - 1."""

_ATTEMPTS = 50
"""Draws of a child before a known one is accepted."""


class SearchConfig(BaseModel):
    """Length of the search, and distance of children from their parents."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    generations: int = Field(default=4, ge=1)
    """Rounds; the first one is random."""
    num_mutations: int = Field(default=6, ge=1)
    """Children per round that are a parent with some genes drawn anew."""
    num_crossovers: int = Field(default=6, ge=1)
    """Children per round that take each gene from one of two parents."""
    num_parents: int = Field(default=6, ge=2)
    """Number of best candidates so far from which the next children come."""
    mutation_rate: float = Field(default=0.1, gt=0, le=1)
    """Probability that a gene is drawn anew; at least one gene always is."""


class Winner(NamedTuple):
    """Result of a search."""

    genome: Genome
    fitness: float
    best_by_generation: list[float]
    """The best fitness so far after each generation."""


def mutate(genome: Genome, num_choices: Sequence[int], rate: float, generator: np.random.Generator) -> Genome:
    """A new genome with about `rate` of the genes drawn anew, at least one; the parent stays as it is.

    >>> mutate((3, 3, 3), (4, 4, 4), 0.1, np.random.default_rng(1))
    (3, 3, 1)
    """
    is_drawn = generator.random(len(genome)) < rate
    is_drawn[generator.integers(len(genome))] = True
    drawn = generator.integers(num_choices)
    return tuple(np.where(is_drawn, drawn, genome).tolist())


def cross(first: Genome, second: Genome, generator: np.random.Generator) -> Genome:
    """A new genome that takes each gene from one of two parents, which stay as they are.

    >>> cross((0, 0, 0, 0), (1, 1, 1, 1), np.random.default_rng(1))
    (1, 1, 0, 1)
    """
    return tuple(np.where(generator.random(len(first)) < 0.5, first, second).tolist())


def evolve(
    num_choices: Sequence[int],
    fitness: Callable[[Genome], float],
    config: SearchConfig,
    *,
    seed: int,
    path: Path,
    start: Sequence[Genome] = (),
    identity: Any = None,
    progress: bool = False,
) -> Winner:
    """The genome of the highest fitness that a search of fixed length finds; ties go to the smallest genome.

    `start` are candidates of the first generation, next to random ones. Fitness values in `path` are reused if they
    belong to a search with the same arguments and the same JSON-able `identity`.
    """
    known = _Known(path, [list(num_choices), config.model_dump(), seed, [list(one) for one in start], identity])
    size = config.num_mutations + config.num_crossovers
    history: list[float] = []
    with progress_bar("search", max(size, len(start)) + size * (config.generations - 1), enabled=progress) as advance:
        for generation in range(config.generations):
            generator = np.random.default_rng([seed, generation])
            if generation == 0:
                children = _first(num_choices, size, start, generator)
            else:
                children = _children(known.ranked()[: config.num_parents], num_choices, config, known, generator)
            for child in children:
                if child not in known:
                    known.add(child, fitness(child))
                known.admit(child)
                advance(1, note=f"best {known.best:.5f}")
            history.append(known.best)
    winner = known.ranked()[0]
    return Winner(winner, known[winner], history)


def _first(
    num_choices: Sequence[int], size: int, start: Sequence[Genome], generator: np.random.Generator
) -> list[Genome]:
    drawn = [tuple(generator.integers(num_choices).tolist()) for _ in range(max(0, size - len(start)))]
    return [*start, *drawn]


def _children(
    parents: Sequence[Genome],
    num_choices: Sequence[int],
    config: SearchConfig,
    known: "_Known",
    generator: np.random.Generator,
) -> Iterator[Genome]:
    """Mutations, then crossovers, of the parents; new ones if possible."""

    def parent() -> Genome:
        return parents[int(generator.integers(len(parents)))]

    makers: list[Callable[[], Genome]] = [
        *[lambda: mutate(parent(), num_choices, config.mutation_rate, generator)] * config.num_mutations,
        *[lambda: cross(parent(), parent(), generator)] * config.num_crossovers,
    ]
    for make in makers:
        child = make()
        for _ in range(_ATTEMPTS):
            if not known.is_admitted(child):
                break
            child = make()
        yield child


class _Known:
    """Fitness by genome. The file may hold more genomes than this pass has reached; only admitted ones count."""

    def __init__(self, path: Path, identity: Any) -> None:
        self._path = path
        self._fitness: dict[Genome, float] = {}
        self._admitted: dict[Genome, float] = {}
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        lines = text.splitlines()
        if not lines or lines[0] != json.dumps({"search": key}):
            write_text(path, json.dumps({"search": key}) + "\n")
            return
        whole = [line for line in lines[1:] if _is_whole(line)]  # the process may have died while it wrote the last one
        if len(whole) < len(lines) - 1 or not text.endswith("\n"):
            write_text(path, "".join(f"{line}\n" for line in [lines[0], *whole]))
        for record in map(json.loads, whole):
            self._fitness[tuple(record["genome"])] = record["fitness"]

    def __contains__(self, genome: Genome) -> bool:
        return genome in self._fitness

    def __getitem__(self, genome: Genome) -> float:
        return self._fitness[genome]

    def add(self, genome: Genome, fitness: float) -> None:
        self._fitness[genome] = fitness
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"genome": list(genome), "fitness": fitness}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def admit(self, genome: Genome) -> None:
        self._admitted[genome] = self._fitness[genome]

    def is_admitted(self, genome: Genome) -> bool:
        return genome in self._admitted

    def ranked(self) -> list[Genome]:
        return sorted(self._admitted, key=lambda genome: (-self._admitted[genome], genome))

    @property
    def best(self) -> float:
        return max(self._admitted.values())


def _is_whole(line: str) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and {"genome", "fitness"} <= record.keys()

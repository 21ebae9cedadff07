"""The evolutionary search: it finds what it is asked for, keeps the best, and does not care about being killed."""

import json

import numpy as np
import pytest

from recsys.compression.evolution import SearchConfig, cross, evolve, mutate

TARGET = (3, 0, 2, 4, 1, 3)
CHOICES = [5] * len(TARGET)
CONFIG = SearchConfig(generations=25)


def closeness(genome):
    return -float(sum(abs(a - b) for a, b in zip(genome, TARGET, strict=True)))


def test_the_search_finds_the_best_of_fifteen_thousand(tmp_path):
    winner = evolve(CHOICES, closeness, CONFIG, seed=1, path=tmp_path / "search.jsonl")
    assert winner.genome == TARGET
    assert winner.fitness == 0


def test_o8_the_best_never_gets_worse_and_a_seed_gives_one_winner(tmp_path):
    config = SearchConfig(generations=6)
    winners = [evolve(CHOICES, closeness, config, seed=3, path=tmp_path / f"{n}.jsonl") for n in range(2)]
    assert winners[0] == winners[1]
    history = winners[0].best_by_generation
    assert len(history) == 6
    assert history == sorted(history)
    assert evolve(CHOICES, closeness, config, seed=4, path=tmp_path / "4.jsonl") != winners[0]


@pytest.mark.parametrize("num_known", [0, 1, 7, 40])
@pytest.mark.parametrize("torn", ["", '{"genome": [1, 2', '{"genome": [0, 0, 0, 0, 0, 0], "fitness": -13.0}'])
def test_a_killed_search_ends_at_the_same_winner(tmp_path, num_known, torn):
    config = SearchConfig(generations=6)
    whole = tmp_path / "whole.jsonl"
    expected = evolve(CHOICES, closeness, config, seed=5, path=whole)
    lines = whole.read_text().splitlines()
    cut = tmp_path / "cut.jsonl"
    cut.write_text("\n".join(lines[: num_known + 1]) + "\n" + torn)
    asked = []

    def counted(genome):
        asked.append(genome)
        return closeness(genome)

    assert evolve(CHOICES, counted, config, seed=5, path=cut) == expected
    assert len(asked) <= len(lines) - 1 - num_known
    evolve(CHOICES, counted, config, seed=5, path=cut)
    assert len(set(asked)) == len(asked)  # nothing twice
    for line in cut.read_text().splitlines():
        json.loads(line)


def test_what_another_search_knew_does_not_count(tmp_path):
    path = tmp_path / "search.jsonl"
    evolve(CHOICES, closeness, SearchConfig(generations=2), seed=1, path=path, identity=1)
    found = evolve(
        CHOICES, lambda genome: float(sum(genome)), SearchConfig(generations=25), seed=1, path=path, identity=2
    )
    assert found.genome == (4, 4, 4, 4, 4, 4)


def test_b1_mutation_copies_and_reaches_every_choice():
    generator, parent = np.random.default_rng(1), (2, 2, 2)
    children = [mutate(parent, [3, 5, 4], 0.3, generator) for _ in range(500)]
    assert parent == (2, 2, 2)
    for gene, num_choices in enumerate([3, 5, 4]):
        assert {child[gene] for child in children} == set(range(num_choices))
    assert all(isinstance(gene, int) for child in children for gene in child)


def test_b2_crossover_mixes_features_of_both_parents():
    generator = np.random.default_rng(1)
    first, second = (0,) * 10, (1,) * 10
    children = [cross(first, second, generator) for _ in range(300)]
    assert 0.4 < np.mean(children) < 0.6
    assert sum(child in (first, second) for child in children) < 5  # the reference code copies a parent most times


def test_b4_the_best_stay_parents(tmp_path):
    # One genome is good and all others are equally bad: its children must go on appearing to the end.
    config = SearchConfig(generations=8, mutation_rate=0.01, num_parents=2)
    seen = []

    def fitness(genome):
        seen.append(genome)
        return float(genome == (0,) * 6)

    evolve([40] * 6, fitness, config, seed=1, path=tmp_path / "search.jsonl", start=[(0,) * 6])
    late = seen[-40:]
    assert any(sum(gene != 0 for gene in genome) == 1 for genome in late)

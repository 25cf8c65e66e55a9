"""Prompts have the length asked for and share no beginning."""

import pytest

from components.bench.prompts import (
    HEAD,
    OPENING,
    POOL_TOKENS,
    TOKEN_IDS,
    WORDS,
    ChatPrompts,
    IdPrompts,
    WordCost,
)
from components.domain.words import vocabulary


@pytest.mark.parametrize("tokens", [1, HEAD, 300, POOL_TOKENS + 10])
def test_a_prompt_of_ids_has_exactly_the_length(tokens: int):
    ids = IdPrompts(seed=1).fields(0, tokens)["prompt"]
    assert len(ids) == tokens
    assert set(ids) <= set(TOKEN_IDS)


def test_no_two_prompts_of_a_run_begin_alike():
    prompts = IdPrompts(seed=1)
    heads = {tuple(prompts.fields(index, 100)["prompt"][:HEAD]) for index in range(1000)}
    assert len(heads) == 1000


def test_the_seed_decides_the_prompts():
    assert IdPrompts(7).fields(3, 50) == IdPrompts(7).fields(3, 50)
    assert IdPrompts(7).fields(3, 50) != IdPrompts(8).fields(3, 50)


def test_what_words_cost_is_read_from_two_observations():
    cost = WordCost.measured((16, 16 * 2 + 9), (80, 80 * 2 + 9))
    assert cost == WordCost(9, 2.0)
    assert cost.words(109) == 50
    assert cost.words(3) == 1


def test_a_server_that_counts_no_words_does_not_stop_the_run():
    assert WordCost.measured((16, 5), (80, 5)).words(20) == 15


def test_a_chat_prompt_has_the_words_that_make_up_the_length():
    message = ChatPrompts(1, WordCost(9, 1.0)).fields(0, 109)["messages"][0]
    words = message["content"].split(" ")
    assert message["role"] == "user"
    assert words.pop(0) == OPENING
    assert len(words) == 100
    assert set(words) <= set(WORDS)


def test_every_word_is_one_token_of_a_simulated_model():
    language = vocabulary()
    tokens = {language.text(token_id) for token_id in (*language.words, *language.openings)}
    assert {f" {word}" for word in WORDS} <= tokens
    assert OPENING in tokens

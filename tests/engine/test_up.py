"""`switchyard up --engine vllm`: a real model behind the gateway, held as users hold it."""

import asyncio
import importlib.util
import json
from pathlib import Path

import openai
import pytest

from bus.subjects import show_pages
from components.cli import keyring
from components.cli.operator_bus import connected
from components.domain.pages import HASH_BYTES
from schemas.engine import ShowPages, ShowPagesReply
from tests.engine.engines import SMALL
from tests.integration.cli import yards
from tests.integration.cli.yards import alive, until

QUESTION = [{"role": "user", "content": "Which track is free?"}]
GREEDY = {"temperature": 0, "extra_body": {"ignore_eos": True}}


CONNECTORS = {
    "aggregated": None,
    "switchyard": None,
    "ExampleConnector": {"kv_role": "kv_both", "kv_connector_extra_config": {}},
    "NixlConnector": {"kv_buffer_device": "cpu"},
}


def kinds():
    for kind in CONNECTORS:
        missing = kind == "NixlConnector" and importlib.util.find_spec("nixl") is None
        yield pytest.param(kind, marks=[pytest.mark.skip("no nixl")] if missing else [])


@pytest.fixture(scope="module", params=kinds())
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def config(kind, tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    lines = [
        "[worker]",
        "kv_events = true",
        "[worker.engine_args]",
        *(f"{k} = {json.dumps(v)}" for k, v in SMALL.items()),
    ]
    connector = CONNECTORS[kind]
    if connector is not None:
        lines += ["[worker.kv_transfer]", f'kv_connector = "{kind}"']
        lines += [f'{k} = "{v}"' for k, v in connector.items() if isinstance(v, str)]
    if kind == "ExampleConnector":
        lines += ["[worker.kv_transfer.kv_connector_extra_config]"]
        lines += [f'shared_storage_path = "{folder}/kv"']
    path = folder / "yard.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def yard(kind, tiny_model, config, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yards, "READY_S", 150.0)
        engines = (1, 0, 0) if kind == "aggregated" else (0, 1, 1)
        flags = ("--aggregated", "--prefill", "--decode")
        words = [str(w) for pair in zip(flags, engines, strict=True) if pair[1] for w in pair]
        words += ["--engine", "vllm", "--model", str(tiny_model), "--config", str(config)]
        with yards.yard(tmp_path_factory.mktemp("yard") / "data", *words) as here:
            yield here
            family = here.family()
            assert here.stop() == 0
            assert not alive(family)


@pytest.fixture
def client(yard):
    with openai.OpenAI(base_url=f"{yard.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def model(client):
    [model] = client.models.list().data
    return model.id


def test_a_chat_is_answered_and_streamed_alike(client, model):
    whole = client.chat.completions.create(
        model=model, messages=QUESTION, max_completion_tokens=40, **GREEDY
    )
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 40
    # <|user|>, the text, <|assistant|>
    assert whole.usage.prompt_tokens == 1 + len(QUESTION[0]["content"]) + 1
    stream = client.chat.completions.create(
        model=model,
        messages=QUESTION,
        max_completion_tokens=40,
        stream=True,
        stream_options={"include_usage": True},
        **GREEDY,
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == 40


def test_completions_have_choices_stops_and_logprobs(client, model):
    given = {"model": model, "prompt": "One, two, ", "max_tokens": 20, **GREEDY}
    plain = client.completions.create(n=2, logprobs=2, **given)
    first, second = plain.choices
    assert first.text == second.text  # greedy
    assert len(first.logprobs.token_logprobs) == 20
    assert all(p <= 0 for p in first.logprobs.token_logprobs)
    stop = first.text[-1]
    stopped = client.completions.create(stop=[stop], **given).choices[0]
    assert stopped.finish_reason == "stop"
    assert stopped.text == first.text[: first.text.index(stop)]


def test_a_prompt_that_is_too_long_is_refused_in_openais_words(client, model):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=model, prompt="x" * 1100, max_tokens=5)
    assert caught.value.code == "context_length_exceeded"


def test_a_stream_that_is_left_frees_everything(yard, client, model):
    stream = client.completions.create(
        model=model, prompt="Which track?", max_tokens=900, stream=True, **GREEDY
    )
    for place, _ in enumerate(stream):
        if place == 5:
            break
    stream.close()
    until(lambda: all(is_free(e["load"]) for e in yard.status()["engines"]), "free engines")


def is_free(load):
    return not (load["running"] or load["waiting"] or load["kv_pages_used"] or load["leases"])


def test_status_shows_the_engines_and_their_pages(yard, kind):
    engines = yard.status()["engines"]
    assert len(engines) == (1 if kind == "aggregated" else 2)
    assert {engine["load"]["kv_pages_total"] for engine in engines} == {4094}


def test_prompts_were_handed_over_where_they_should_be(yard, kind):
    shown = yard.run("events", "requests", "--json").stdout
    assert ("handed_over" in shown) == (kind != "aggregated")


def test_cached_pages_are_told_on_the_bus(yard, client, model):
    client.completions.create(model=model, prompt="Which track is free? " * 4, max_tokens=2)
    until(lambda: "stored=" in yard.run("events", "KV_EVENTS").stdout, "pages")
    name = yard.status()["engines"][0]["engine"]
    until(lambda: asyncio.run(pages_of(yard.page(), name)).total, "an answer with pages")
    shown = asyncio.run(pages_of(yard.page(), name))
    assert len(shown.pages) == len(shown.parents) == shown.total * HASH_BYTES
    assert shown.change >= shown.total


async def pages_of(page, name):
    """What the engine shows to a reader who missed its changes."""
    key_file = keyring.find(Path(page.keys_dir), keyring.OPERATOR, keyring.OPERATOR)
    async with connected(page.nats_url, key_file, page.subject_prefix) as bus:
        return await bus.ask(show_pages(name), ShowPages(), ShowPagesReply, timeout_s=5)

"""The tiny model is the same wherever and whenever it is made."""

from components.cli.main import main
from components.worker.vllm.tiny_model import TOKENS
from tests.engine.engines import bytes_of


def test_the_command_writes_the_same_files_every_time(tiny_model, tmp_path):
    assert main(["tiny-model", str(tmp_path / "again")]) == 0
    files = sorted(path.name for path in tiny_model.iterdir())
    assert files == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in files:
        assert (tiny_model / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_every_text_has_tokens_and_comes_back(tiny_model):
    from transformers import AutoTokenizer  # type: ignore[import-not-found]  # noqa: PLC0415

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert len(tokenizer) == TOKENS
    for text in ("", "Hello, yard", "Über 10 €? 线路 🚂\n\0"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert len(ids) == len(text.encode())
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode("Hello, yard\n") == bytes_of("Hello, yard\n")
    assert tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    ) == ("<|user|>Hi<|assistant|>")


def test_tools_calls_and_results_are_written_as_hermes_has_it(tiny_model):
    from transformers import AutoTokenizer  # noqa: PLC0415

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert tokenizer.convert_ids_to_tokens([6, 7, 264, 265]) == [
        "<tool_call>",
        "</tool_call>",
        "<think>",
        "</think>",
    ]
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2"},
    ]
    tools = [{"type": "function", "function": {"name": "f"}}]
    rendered = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    assert rendered == (
        '<|system|><tools>{"type": "function", "function": {"name": "f"}}</tools><|user|>Hi'
        '<|assistant|><tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
        "<|user|><tool_response>2</tool_response>"
    )

"""Tools through chat templates, and calls as tokenizers teach them; the model has learnt one conversation by heart."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM

from llmkit.errors import UnsupportedFeature
from llmkit.params import GenerationParams
from llmkit.tools import as_tools, checked_call, read_answer
from llmkit.types import Choice, Message, Request
from llmkit_transformers import TransformersLLM
from llmkit_transformers.answers import answer_of
from llmkit_transformers.encoding import PromptEncoder
from tests import tiny_models

TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>\n{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "</{{ m.role }}>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<assistant>",
    "fields": {
        "content": {"close": "<call>", "content": "text"},
        "tool_calls": {
            "open_pattern": r"<call>(?P<name>\w+)\(",
            "close_pattern": r"\)(?:</s>)?",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
    },
}
CALL = '<tool_call>{"name": "double", "arguments": {"number": 21}}</tool_call>'


def double(number: int) -> int:
    """Double."""
    return 2 * number


def request(*messages: Message, tools: Any = (), **fields: Any) -> Request:
    return Request(messages, GenerationParams(eos_token_id=tiny_models.EOS), tools=tuple(tools), **fields)


def teach(folder: Path, lessons: list[tuple[list[int], list[int]]]) -> None:
    """Train the saved model until it answers each prompt with its answer."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    width = max(len(prompt) + len(answer) for prompt, answer in lessons)
    ids = torch.full((len(lessons), width), tiny_models.PAD)
    labels = torch.full_like(ids, -100)
    for row, (prompt, answer) in enumerate(lessons):
        ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(400):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.003:
            break
    model.save_pretrained(folder)


def lessons(llm: TransformersLLM) -> list[tuple[list[int], list[int]]]:
    """Both prompts of the conversation as llmkit writes them, and what the model is to answer."""
    turn, tools = Message("user", "double 21"), tuple(tool.schema for tool in as_tools([double]))
    asked = list(llm._encode(request(turn, tools=tools)))  # pyright: ignore[reportPrivateUsage]
    call = checked_call(read_answer(CALL).calls[0], tools, f"0 {tuple(asked)} 0 {CALL}")
    result = Message("tool", "42", tool_call_id=call.id)
    called = request(turn, Message("assistant", "", (call.to_dict(),)), result, tools=tools)
    told = list(llm._encode(called))  # pyright: ignore[reportPrivateUsage]
    ids = llm.tokenizer([CALL, "It is 42."])["input_ids"]
    return [(asked, [*ids[0], tiny_models.EOS]), (told, [*ids[1], tiny_models.EOS])]


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TransformersLLM]:
    """A model that calls `double` and then tells what it gave."""
    folder = tmp_path_factory.mktemp("caller")
    tokenizer = tiny_models.wrapped(tiny_models.byte_level_tokenizer(), template=TEMPLATE)
    tiny_models.build(folder, tokenizer=tokenizer, max_position_embeddings=1024)
    with TransformersLLM(str(folder)) as blank:
        to_learn = lessons(blank)
    teach(folder, to_learn)
    with TransformersLLM(str(folder), max_tokens=120) as llm:
        yield llm


def test_a_model_that_calls_is_answered_and_goes_on(caller: TransformersLLM) -> None:
    assert caller.chat("double 21", tools=[double]) == "It is 42."
    _, asked, result, _ = caller.history
    assert asked.tool_calls[0]["function"] == {"name": "double", "arguments": {"number": 21}}
    assert result.content == "42"


def test_a_completion_has_its_calls(caller: TransformersLLM) -> None:
    completion = caller.complete("double 21", tools=[double])
    (call,) = completion.tool_calls
    assert (call.name, call.arguments, call.error) == ("double", {"number": 21}, None)
    assert (completion.text, completion.choices[0].finish_reason) == (CALL, "tool_calls")


def test_a_template_without_tools_refuses_them() -> None:
    encoder = PromptEncoder(tiny_models.wrapped(tiny_models.byte_level_tokenizer(), template="{{ messages }}"))
    with pytest.raises(UnsupportedFeature, match="makes no use of 'tools'"):
        encoder.encode(request(Message("user", "x"), tools=[{"name": "f"}]))


@pytest.mark.parametrize("arguments", [{"number": 21}, '{"number": 21}'])
def test_calls_in_the_conversation_reach_the_template_with_objects_as_arguments(arguments: Any) -> None:
    tokenizer = tiny_models.wrapped(tiny_models.byte_level_tokenizer(), template=TEMPLATE)
    call = {"id": "1", "type": "function", "function": {"name": "double", "arguments": arguments}}
    asked = request(Message("user", "x"), Message("assistant", "", (call,)), Message("tool", "42", tool_call_id="1"))
    text = tokenizer.decode(PromptEncoder(tokenizer).encode(asked))
    assert text == f"<user>x</user>\n<assistant>{CALL}</assistant>\n<tool>42</tool>\n<assistant>"


def read(tokenizer: Any, text: str) -> Any:
    ids = (*tokenizer(text)["input_ids"], tiny_models.EOS)
    plain = tokenizer.decode(ids, skip_special_tokens=True)
    asked = request(
        Message("user", "x"), tools=[{"name": "double"}], prompt_ids=tuple(tokenizer("<assistant>")["input_ids"])
    )
    return answer_of(Choice(0, plain, "stop", ids), asked, tokenizer)


def test_tags_that_are_special_tokens_are_seen() -> None:
    inner = tiny_models.byte_level_tokenizer()
    inner.add_special_tokens([AddedToken(tag, special=True) for tag in ("<tool_call>", "</tool_call>")])
    answer = read(tiny_models.wrapped(inner), f"One moment.{CALL}")
    assert (answer.content, answer.calls[0].arguments) == ("One moment.", {"number": 21})


def test_a_tokenizers_own_response_template_reads_its_own_form() -> None:
    tokenizer = tiny_models.wrapped(tiny_models.byte_level_tokenizer())
    tokenizer.response_template = RESPONSE_TEMPLATE
    answer = read(tokenizer, 'One moment.<call>double({"number": 21})<call>double({"number": 4})')
    assert answer.content == "One moment."
    assert [(call.name, call.arguments) for call in answer.calls] == [
        ("double", {"number": 21}),
        ("double", {"number": 4}),
    ]


def test_a_text_that_breaks_the_response_template_is_a_call_with_an_error() -> None:
    tokenizer = tiny_models.wrapped(tiny_models.byte_level_tokenizer())
    tokenizer.response_template = RESPONSE_TEMPLATE
    answer = read(tokenizer, "<call>double({)")
    assert "does not have the form" in str(answer.calls[0].error)

"""Prompts: the decisions of the transformers backend, on templates from GGUF metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import llmkit
from llmkit import GenerationParams, Message, Request
from llmkit.errors import InvalidRequest, ParameterError, UnsupportedFeature
from llmkit_llama_cpp import LlamaCppLLM
from llmkit_llama_cpp.encoding import PromptEncoder
from tests.llama_cpp import ggufs
from tests.tiny_models import NO_SYSTEM_TEMPLATE, STRICT_TEMPLATE, TEMPLATE

SYSTEM, USER = Message("system", "be brief"), Message("user", "hello")
TEXTS = [
    "hello",
    "héllo 😀 çà et là, 日本語",
    " two  spaces\n\n\ttabs",
    "don't I'M 12345",
    "a <|end|> b",
    "\r\n",
    "é" * 300,
]


class Model:
    """The embedded vocabulary with other metadata."""

    def __init__(self, model: Any, **metadata: str) -> None:
        self._model = model
        kept = {key: value for key, value in model.metadata.items() if not key.startswith(ggufs.TEMPLATE)}
        self.metadata = {**kept, **{f"{ggufs.TEMPLATE}{name}": text for name, text in metadata.items()}}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def with_template(llm: LlamaCppLLM, template: str | None, **others: str) -> PromptEncoder:
    templates = {} if template is None else {"": template}
    return PromptEncoder(Model(llm._model, **templates, **{f".{name}": text for name, text in others.items()}))


def text_of(encoder: PromptEncoder, llm: LlamaCppLLM, request: Request) -> str:
    ids = encoder.encode(request)
    return b"".join(llm._model.spelling(token) for token in ids).decode()


@pytest.fixture(scope="module")
def transformers_llm() -> Any:
    with llmkit.load("transformers:") as other:
        yield other


def test_prompts_have_the_tokens_that_they_have_on_transformers(llm: LlamaCppLLM, transformers_llm: Any) -> None:
    conversations = [(USER,), (SYSTEM, USER), (USER, Message("assistant", " hi "), Message("user", "bye"))]
    requests = [Request(text, raw=raw) for text in TEXTS for raw in (True, False)]
    requests += [Request(messages) for messages in conversations]
    for request in requests:
        assert llm._encode(request) == list(transformers_llm._encode(request)), request.prompt
        assert llm._num_tokens("hello world") == transformers_llm._num_tokens("hello world")


def test_texts_come_back_from_their_tokens(llm: LlamaCppLLM) -> None:
    for text in TEXTS:
        ids = llm._model.tokenize(text, add_special=False)
        assert llm._encoder.decode(ids) == text.replace("<|end|>", "")


def test_a_template_writes_the_only_bos(llm: LlamaCppLLM) -> None:
    ids = llm._encode(Request("hello"))
    assert ids.count(llm._model.special("bos")) == 1
    assert llm._encode(Request("hello", GenerationParams(bos_token_id=7), raw=True))[:2] != ids[:2]
    assert llm._encode(Request("hello", GenerationParams(bos_token_id=7)))[0] == 7
    with pytest.raises(ParameterError, match="bos_token_id must be below the vocabulary's size of 1536, got 9999"):
        llm.run("hello", bos_token_id=9999)


def test_a_system_message_that_is_refused_opens_the_first_user_turn(llm: LlamaCppLLM) -> None:
    encoder = with_template(llm, NO_SYSTEM_TEMPLATE)
    assert text_of(encoder, llm, Request((SYSTEM, USER))) == "<|begin|>user: be brief\n\nhello\nassistant: "
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        with_template(llm, STRICT_TEMPLATE).encode(Request((USER, USER)))


def test_without_a_template_contents_are_joined_and_a_string_is_raw(llm: LlamaCppLLM) -> None:
    encoder = with_template(llm, None)
    assert text_of(encoder, llm, Request((SYSTEM, USER))) == "<|begin|>be brief\nhello"
    assert encoder.encode(Request("hello")) == encoder.encode(Request("hello", raw=True))
    with pytest.raises(UnsupportedFeature, match="need a chat template"):
        encoder.encode(Request("hello", tools=({"name": "f"},)))


def test_tools_and_arguments_reach_the_template_or_are_refused(llm: LlamaCppLLM) -> None:
    encoder = with_template(llm, TEMPLATE)
    request = Request((USER,), tools=({"name": "look"},), template_args={"mood": "merry"})
    assert text_of(encoder, llm, request) == "<|begin|>tools: look\nuser: hello\nmood: merry\nassistant: "
    with pytest.raises(UnsupportedFeature, match="makes no use of 'tools'"):
        llm.run("hello", tools=[{"name": "look"}])
    with pytest.raises(UnsupportedFeature, match="makes no use of 'colour'"):
        encoder.encode(Request((USER,), template_args={"colour": 1}))
    with pytest.raises(InvalidRequest, match="must not set 'bos_token'"):
        encoder.encode(Request((USER,), template_args={"bos_token": "x"}))


def test_tools_take_the_template_that_is_made_for_them(llm: LlamaCppLLM) -> None:
    encoder = with_template(llm, "plain", tool_use="{{ tools | tojson }}")
    assert text_of(encoder, llm, Request((USER,))) == "plain"
    assert text_of(encoder, llm, Request((USER,), tools=({"name": "é"},))) == '[{"name": "é"}]'


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for m in messages %}{{ m.role",
        "{{ 'a' + 1 }}",
        "{{ cycler.__init__.__globals__.os }}",
    ],
)
def test_a_template_that_reaches_out_or_cannot_be_read_is_refused(llm: LlamaCppLLM, template: str) -> None:
    with pytest.raises(InvalidRequest, match="refuses this conversation"):
        with_template(llm, template).encode(Request((USER,)))


def test_what_transformers_offers_to_templates_is_there(llm: LlamaCppLLM) -> None:
    template = (
        "{% for m in messages %}{% if loop.index0 > 0 %}{% break %}{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}{{ eos_token }}{{ strftime_now('%Y') | length }}"
    )
    assert text_of(with_template(llm, template), llm, Request((USER, SYSTEM))) == "hello<|end|>4"


def test_the_file_with_another_template_is_read(tmp_path: Path) -> None:
    path = ggufs.changed(tmp_path / "templated.gguf", {ggufs.TEMPLATE: NO_SYSTEM_TEMPLATE})
    with LlamaCppLLM(str(path)) as llm:
        folded = llm._encode(Request((Message("user", "be brief\n\nhello"),)))
        assert llm._encode(Request((SYSTEM, USER))) == folded
    with LlamaCppLLM(str(ggufs.changed(tmp_path / "plain.gguf", {ggufs.TEMPLATE: None}))) as llm:
        assert not llm._encoder.has_template

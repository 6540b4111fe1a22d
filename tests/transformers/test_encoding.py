from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from llmkit.errors import ContextLengthExceeded, InvalidRequest, UnsupportedFeature
from llmkit.history import fold_system
from llmkit.params import GenerationParams
from llmkit.types import Message, Request
from llmkit_transformers import TransformersLLM
from llmkit_transformers.encoding import PromptEncoder
from tests import tiny_models
from tests.tiny_models import BOS, WINDOW

SYSTEM, USER = Message("system", "be brief"), Message("user", "hi")
TOOL = {"name": "weather", "parameters": {}}


def encoder(template: str | None = tiny_models.TEMPLATE, *, adds_bos: bool = False) -> PromptEncoder:
    return PromptEncoder(tiny_models.wrapped(tiny_models.byte_level_tokenizer(adds_bos=adds_bos), template=template))


def shown(encoder: PromptEncoder, prompt: Any, **fields: Any) -> str:
    """What the model reads, special tokens included."""
    return encoder.tokenizer.decode(encoder.encode(Request(prompt, **fields)))


def test_a_string_is_a_user_turn_where_there_is_a_template_and_raw_where_there_is_none() -> None:
    assert shown(encoder(), "hi") == "<s>user: hi\nassistant: "
    assert shown(encoder(None), "hi") == "hi"
    assert shown(encoder(), "hi", raw=True) == "hi"


def test_messages_go_through_the_template_or_are_joined_by_newlines() -> None:
    assert shown(encoder(), (SYSTEM, USER)) == "<s>system: be brief\nuser: hi\nassistant: "
    assert shown(encoder(None), (SYSTEM, USER)) == "be brief\nhi"


@pytest.mark.parametrize("adds_bos", [True, False])
def test_there_is_never_a_second_bos(adds_bos: bool) -> None:
    assert encoder(adds_bos=adds_bos).encode(Request("hi")).count(BOS) == 1
    assert encoder(None, adds_bos=adds_bos).encode(Request("hi")).count(BOS) == int(adds_bos)


def test_bos_token_id_stands_in_place_of_the_tokenizers_own() -> None:
    for one in (encoder(), encoder(None, adds_bos=True), encoder(None)):
        ids = one.encode(Request("hi", GenerationParams(bos_token_id=9)))
        assert (ids[0], ids.count(9), ids.count(BOS)) == (9, 1, 0)
        own = one.encode(Request("hi", GenerationParams(bos_token_id=BOS)))
        assert (own[0], own.count(BOS)) == (BOS, 1)


def test_a_template_that_refuses_a_system_message_gets_it_in_the_first_user_turn() -> None:
    one = encoder(tiny_models.NO_SYSTEM_TEMPLATE)
    assert shown(one, (SYSTEM, USER)) == "<s>user: be brief\n\nhi\nassistant: "
    assert shown(one, (USER,)) == "<s>user: hi\nassistant: "


def test_a_conversation_that_a_template_refuses_altogether_is_an_error_in_its_words() -> None:
    with pytest.raises(InvalidRequest, match="chat template refuses this conversation: roles must alternate"):
        encoder(tiny_models.STRICT_TEMPLATE).encode(Request((USER, USER)))


def test_folding_keeps_everything_that_was_said() -> None:
    folded = fold_system((Message("assistant", "hello"), SYSTEM, USER))
    assert folded == (Message("assistant", "hello"), Message("user", "be brief\n\nhi"))
    assert fold_system((SYSTEM,)) == (Message("user", "be brief"),)
    assert fold_system((USER,)) == (USER,)


def test_tools_and_template_arguments_reach_the_template() -> None:
    text = shown(encoder(), "hi", tools=(TOOL,), template_args={"mood": "calm"})
    assert text == "<s>tools: weather\nuser: hi\nmood: calm\nassistant: "


@pytest.mark.parametrize("fields", [{"tools": (TOOL,)}, {"template_args": {"mood": "calm"}}])
def test_tools_and_template_arguments_need_a_template(fields: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedFeature, match="need a chat template"):
        encoder(None).encode(Request("hi", **fields))


@pytest.mark.parametrize("name", ["tokenize", "messages", "add_generation_prompt"])
def test_template_arguments_cannot_take_over_what_llmkit_sets(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"template_args must not set '{name}'"):
        encoder().encode(Request("hi", template_args={name: True}))


def test_special_tokens_have_no_text() -> None:
    decode = encoder().decoder()
    assert decode([BOS, *encoder(None).encode(Request("héllo 😀")), tiny_models.EOS]) == "héllo 😀"


@pytest.mark.parametrize("make", [tiny_models.byte_level_tokenizer, tiny_models.metaspace_tokenizer])
def test_the_text_of_tokens_is_what_the_tokenizer_decodes(make: Any) -> None:
    tokenizer, draw = tiny_models.wrapped(make()), random.Random(1)
    decode = PromptEncoder(tokenizer).decoder()
    for _ in range(50):
        ids = [draw.randrange(len(tokenizer)) for _ in range(draw.randrange(9))]
        assert decode(ids) == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


TEXTS = [" ", "hi", "héllo 😀\n\n  two  spaces", "<s>user: </s> <s>", "<pad>x<unk>", "a" * 3000, "\ud7ff\u200b\x00é"]


def unchanged(_: Any) -> None:
    pass


def that_cuts(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.enable_truncation(4)


def that_pads(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.enable_padding(length=50)


def that_spells_special_tokens_out(tokenizer: Any) -> None:
    tokenizer.split_special_tokens = True


@pytest.mark.parametrize("make", [tiny_models.byte_level_tokenizer, tiny_models.metaspace_tokenizer])
@pytest.mark.parametrize("change", [unchanged, that_cuts, that_pads, that_spells_special_tokens_out])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_the_tokens_of_a_text_are_what_the_tokenizer_gives(make: Any, change: Any, adds_bos: bool) -> None:
    """A `tokenizers` file may say to cut or to pad, which transformers does only where it is asked to."""
    plain = make(adds_bos=True) if adds_bos and make is tiny_models.byte_level_tokenizer else make()
    for text in TEXTS:
        one, other = (tiny_models.wrapped(Tokenizer.from_str(plain.to_str()), template=None) for _ in range(2))
        change(one)
        change(other)
        for encoded in (PromptEncoder(one).encode(Request(text)), PromptEncoder(one).encode(Request(text))):
            assert encoded == other(text)["input_ids"]


def test_a_tokenizer_that_encodes_in_its_own_way_is_asked() -> None:
    tokenizer: Any = tiny_models.wrapped(tiny_models.byte_level_tokenizer())

    class Shouting(type(tokenizer)):
        def _encode_plus(self, text: str, **kwargs: Any) -> Any:
            return super()._encode_plus(text=text.upper(), **kwargs)

    tokenizer.__class__ = Shouting
    assert shown(PromptEncoder(tokenizer), "hi", raw=True) == "HI"


def test_a_tokenizer_that_decodes_in_its_own_way_is_asked() -> None:
    tokenizer: Any = tiny_models.wrapped(tiny_models.byte_level_tokenizer())

    class Shouting(type(tokenizer)):
        def _decode(self, *args: Any, **kwargs: Any) -> str:
            return super()._decode(*args, **kwargs).upper()

    tokenizer.__class__ = Shouting
    encoder = PromptEncoder(tokenizer)
    assert encoder.decoder()(encoder.encode(Request("hi", raw=True))) == "HI"


@pytest.mark.parametrize("make", [tiny_models.byte_level_tokenizer, tiny_models.metaspace_tokenizer])
def test_a_stream_of_any_text_joins_to_what_run_returns(tmp_path: Path, make: Any) -> None:
    folder = tiny_models.build(tmp_path, tokenizer=tiny_models.wrapped(make()))
    with TransformersLLM(str(folder)) as llm:
        for seed in range(4):
            params = {"temperature": 3.0, "seed": seed, "max_tokens": 40}
            assert "".join(llm.stream("héllo 😀", **params)) == llm.run("héllo 😀", **params)


# --- the window -----------------------------------------------------------------------------------------------------


def test_a_prompt_longer_than_the_window_is_refused_with_the_figures(llm: TransformersLLM) -> None:
    prompt = "x" * (WINDOW + 20)
    with pytest.raises(ContextLengthExceeded) as caught:
        llm.run(prompt, raw=True, max_tokens=5)
    error = caught.value
    assert (error.prompt_tokens, error.max_tokens, error.limit) == (llm._num_tokens(prompt), 5, WINDOW)


def test_a_prompt_with_room_for_less_generates_what_fits(llm: TransformersLLM) -> None:
    prompt = "x" * 100
    completion = llm.complete(prompt, raw=True, max_tokens=100)
    assert completion.usage.total_tokens == WINDOW
    assert completion.choices[0].finish_reason == "length"


def test_the_last_position_of_the_window_can_be_used(llm: TransformersLLM) -> None:
    prompt = "x" * (WINDOW - 1)
    assert llm._num_tokens(prompt) == WINDOW - 1
    assert llm.complete(prompt, raw=True, max_tokens=9).usage.completion_tokens == 1


def test_an_encoder_with_a_window_refuses_a_longer_prompt(loaded: Any) -> None:
    with pytest.raises(ContextLengthExceeded):
        loaded("bart").run("x" * (WINDOW + 1), raw=True)
    assert loaded("t5").run("x" * 600, raw=True, max_tokens=2) is not None


@pytest.mark.filterwarnings("ignore::llmkit.errors.ContextWarning")
def test_a_chat_that_outgrows_the_window_drops_its_oldest_turns(model_folder: Any) -> None:
    with TransformersLLM(str(model_folder()), system_prompt="be brief", max_tokens=10) as llm:
        for turn in range(8):
            llm.chat(f"question {turn}")
        assert len(llm.history) == 16
        completion = llm.complete([*llm.history, USER])
        dropped = completion.dropped_messages
        assert dropped == tuple(llm.history[: len(dropped)])
        assert 0 < len(dropped) < 16
        assert len(dropped) % 2 == 0
        assert completion.usage.completion_tokens <= 10

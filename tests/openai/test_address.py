"""Where a model is, read from its name, and the key that nothing shows."""

import pytest

from llmkit.errors import InvalidRequest, ParameterError
from llmkit_openai.address import OPENAI_URL, Address, Key

SECRET = "sk-0123456789abcdef"


@pytest.mark.parametrize(
    ("name", "base_url", "expected"),
    [
        ("http://localhost:8000/v1#qwen", None, Address("http://localhost:8000/v1", "qwen")),
        ("https://host/v1/#org/name", None, Address("https://host/v1", "org/name")),
        ("http://host/v1#a#b", None, Address("http://host/v1", "a#b")),
        ("gpt-5", None, Address(OPENAI_URL, "gpt-5")),
        ("qwen", "http://localhost:8000/v1/", Address("http://localhost:8000/v1", "qwen")),
    ],
)
def test_address_is_read_from_the_name(name: str, base_url: str | None, expected: Address) -> None:
    assert Address.parse(name, base_url) == expected


def test_url_comes_from_the_environment_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1")
    assert Address.parse("m").base_url == "http://localhost:1/v1"
    assert Address.parse("m", "http://localhost:2/v1").base_url == "http://localhost:2/v1"


@pytest.mark.parametrize("name", [None, "", "http://localhost:8000/v1", "http://localhost:8000/v1#"])
def test_a_model_must_be_named(name: str | None) -> None:
    with pytest.raises(InvalidRequest, match="name a model of the server"):
        Address.parse(name)


@pytest.mark.parametrize("url", ["ftp://host/v1", "host:8000/v1", "http:///v1", "v1"])
def test_a_url_must_be_one(url: str) -> None:
    with pytest.raises(ParameterError, match="must be http:// or https:// and a host"):
        Address.parse("m", url)


@pytest.mark.parametrize("url", [f"http://me:{SECRET}@host/v1", f"http://host/v1?key={SECRET}"])
def test_a_url_with_a_secret_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ParameterError, match="no user, password, query or fragment") as caught:
        Address.parse(f"{url}#m")
    assert SECRET not in str(caught.value)


def test_a_url_is_given_once() -> None:
    with pytest.raises(ParameterError, match="base_url must not be given"):
        Address.parse("http://localhost:1/v1#m", "http://localhost:1/v1")


def test_only_openais_own_host_is_openai() -> None:
    assert Address.parse("m").is_openai
    assert not Address.parse("m", "https://api.openai.com.example.org/v1").is_openai


def test_key_is_in_its_header_only() -> None:
    key = Key(f" {SECRET}\n")
    assert key.headers() == {"Authorization": f"Bearer {SECRET}"}
    assert SECRET not in repr(key) + str(key) + repr(vars(key))


def test_key_comes_from_the_environment_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Key(None).headers() == {}
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    assert Key(None).headers() == {"Authorization": f"Bearer {SECRET}"}
    assert Key("another-key").headers() == {"Authorization": "Bearer another-key"}
    assert Key("").headers() == {}


@pytest.mark.parametrize("value", ["sk-with space", "sk-\x00", "sk-é", "sk-a\nX-Evil: 1"])
def test_a_key_that_cannot_stand_in_a_header_is_refused_without_repeating_it(value: str) -> None:
    with pytest.raises(ParameterError, match="api_key must be printable ASCII") as caught:
        Key(value)
    assert value not in str(caught.value)


def test_key_is_blotted_out_of_what_a_server_sends() -> None:
    assert Key(SECRET).hidden_in(f"bad key {SECRET}!".encode()) == b"bad key ***!"
    assert Key("EMPTY").hidden_in(b"the list is EMPTY") == b"the list is EMPTY"
    assert Key(None).hidden_in(b"text") == b"text"

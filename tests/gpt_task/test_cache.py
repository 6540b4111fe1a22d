"""The cache loads a model once, keeps the ones used last, and never closes one in use."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from llmkit.errors import ModelClosed, ModelInvalid, ParameterError
from llmkit.gpt_task import ModelCache
from llmkit.testing import ScriptedLLM


class Shelf:
    """Loads scripted models and remembers them."""

    def __init__(self) -> None:
        self.loaded: list[ScriptedLLM] = []

    def loads(self, name: str) -> Callable[[], ScriptedLLM]:
        def factory() -> ScriptedLLM:
            self.loaded.append(ScriptedLLM(name, model_name=name))
            return self.loaded[-1]

        return factory

    @property
    def names(self) -> list[str | None]:
        return [llm.model_name for llm in self.loaded]

    def is_open(self, at: int) -> bool:
        try:
            self.loaded[at].run("x")
        except ModelClosed:
            return False
        return True


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def use(cache: ModelCache, shelf: Shelf, name: str) -> None:
    with cache.load(name, shelf.loads(name)) as llm:
        assert llm.run("x") == name


def test_a_kept_model_is_not_loaded_again(shelf: Shelf) -> None:
    cache = ModelCache()
    use(cache, shelf, "a")
    use(cache, shelf, "a")
    assert shelf.names == ["a"]


def test_what_was_used_least_recently_is_closed_first(shelf: Shelf) -> None:
    cache = ModelCache(max_models=2)
    for name in ["a", "b", "a", "c"]:
        use(cache, shelf, name)
    assert [shelf.is_open(at) for at in range(3)] == [True, False, True]
    use(cache, shelf, "a")
    assert shelf.names == ["a", "b", "c"]


def test_room_is_made_before_the_next_model_loads(shelf: Shelf) -> None:
    cache = ModelCache()
    use(cache, shelf, "a")

    def factory() -> ScriptedLLM:
        assert not shelf.is_open(0)
        return ScriptedLLM("b")

    with cache.load("b", factory) as llm:
        assert llm.run("x") == "b"


def test_a_model_in_use_stays_open_until_it_is_given_back(shelf: Shelf) -> None:
    cache = ModelCache()
    with cache.load("a", shelf.loads("a")):
        use(cache, shelf, "b")
        assert shelf.is_open(0)
        use(cache, shelf, "c")
    assert len(cache) == 1


def test_the_bound_holds_again_once_everything_is_given_back(shelf: Shelf) -> None:
    cache = ModelCache()
    with cache.load("a", shelf.loads("a")), cache.load("b", shelf.loads("b")):
        assert len(cache) == 2
    assert [shelf.is_open(0), shelf.is_open(1)].count(True) == len(cache) == 1


def test_calls_at_the_same_time_load_a_model_once(shelf: Shelf) -> None:
    cache, together = ModelCache(), threading.Barrier(8)
    release = threading.Event()

    def slow() -> ScriptedLLM:
        release.wait(5)
        return shelf.loads("a")()

    def call() -> str:
        together.wait(5)
        with cache.load("a", slow) as llm:
            return llm.run("x")

    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(call) for _ in range(8)]
        release.set()
        assert [call.result() for call in calls] == ["a"] * 8
    assert shelf.names == ["a"]


def test_another_model_loads_while_one_is_loading(shelf: Shelf) -> None:
    cache, b_is_there = ModelCache(max_models=2), threading.Event()

    def slow() -> ScriptedLLM:
        assert b_is_there.wait(5)
        return shelf.loads("a")()

    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(lambda: cache.load("a", slow).__enter__().run("x"))
        use(cache, shelf, "b")
        b_is_there.set()
        assert call.result() == "a"


def test_a_failed_load_leaves_nothing_behind_and_is_tried_again(shelf: Shelf) -> None:
    cache = ModelCache()

    def fails() -> ScriptedLLM:
        raise ModelInvalid("damaged")

    with pytest.raises(ModelInvalid, match="damaged"), cache.load("a", fails):
        raise AssertionError("there is no model to use")
    assert len(cache) == 0
    use(cache, shelf, "a")


def test_an_error_while_a_model_is_used_gives_it_back(shelf: Shelf) -> None:
    cache = ModelCache()
    with pytest.raises(ZeroDivisionError), cache.load("a", shelf.loads("a")):
        _ = 1 / 0
    use(cache, shelf, "b")
    assert not shelf.is_open(0)


def test_clear_closes_the_idle_now_and_the_others_when_they_are_given_back(shelf: Shelf) -> None:
    cache = ModelCache(max_models=2)
    use(cache, shelf, "idle")
    with cache.load("busy", shelf.loads("busy")):
        cache.clear()
        assert len(cache) == 0
        assert [shelf.is_open(0), shelf.is_open(1)] == [False, True]
        use(cache, shelf, "busy")
    assert [shelf.is_open(1), shelf.is_open(2)] == [False, True]


def test_a_cache_for_no_model_is_refused() -> None:
    with pytest.raises(ParameterError, match="max_models must be an integer >= 1, got 0"):
        ModelCache(max_models=0)

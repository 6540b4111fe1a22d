"""The fake runner notices what the protocol forbids, and its tokens depend on all that was read."""

import threading
from collections.abc import Callable

import pytest

from llmkit.engine.runner import Slice
from llmkit.testing.fake_runner import (
    FakeKeysValues,
    FakeRunner,
    FakeRunnerError,
    FakeSampler,
    ProtocolBroken,
    continuation,
)


def read(
    runner: FakeRunner, keys_values: FakeKeysValues, tokens: list[int], start: int, *, exact: bool = False
) -> list[int]:
    return runner.step([Slice(keys_values, tokens, start, exact, [FakeSampler()])])[0]


def after(*tokens: int) -> list[int]:
    return continuation(tokens, FakeSampler(), lambda generated: len(generated) == 1)


def test_the_next_token_is_the_same_however_the_prompt_was_read() -> None:
    runner = FakeRunner()
    at_once, bit_by_bit = runner.new(), runner.new()
    read(runner, bit_by_bit, [1, 2], 0)
    copy = runner.fork(bit_by_bit, 1)
    read(runner, bit_by_bit, [9, 9], 2)
    runner.truncate(bit_by_bit, 2)
    expected = after(1, 2, 3)
    assert read(runner, at_once, [1, 2, 3], 0) == expected
    assert read(runner, bit_by_bit, [3], 2) == expected
    assert read(runner, copy, [2, 3], 1) == expected


def test_the_next_token_depends_on_every_token_and_on_the_sampler() -> None:
    assert len({after(1, 2, 3)[0], after(4, 2, 3)[0], after(1, 4, 3)[0], after(2, 1, 3)[0], after(2, 3)[0]}) == 5
    runner = FakeRunner()
    first, second = runner.step([Slice(runner.new(), [1], 0, False, [FakeSampler(0), FakeSampler(1)])])[0]
    assert first != second


def freed(runner: FakeRunner) -> FakeKeysValues:
    keys_values = runner.new()
    runner.free(keys_values)
    return keys_values


MISUSES: list[tuple[str, Callable[[FakeRunner, FakeKeysValues], object]]] = [
    ("starts at 1, there are 3", lambda runner, used: read(runner, used, [1], 1)),
    ("without tokens", lambda runner, used: read(runner, used, [], 3)),
    ("after it was freed", lambda runner, used: read(runner, freed(runner), [1], 0)),
    ("after it was freed", lambda runner, used: runner.free(freed(runner))),
    ("another runner", lambda runner, used: read(runner, FakeRunner().new(), [1], 0)),
    ("another kind", lambda runner, used: runner.free(object())),
    ("fork at 4 of 3", lambda runner, used: runner.fork(used, 4)),
    ("truncated to 4 of 3", lambda runner, used: runner.truncate(used, 4)),
    ("two slices", lambda runner, used: runner.step([Slice(used, [1], 3, False), Slice(used, [1], 3, False)])),
    ("an empty step", lambda runner, used: runner.step([])),
    ("fast numerics", lambda runner, used: read(runner, used, [1], 3, exact=True)),
    ("closed with 1", lambda runner, used: runner.close()),
    ("after it was closed", lambda runner, used: (runner.free(used), runner.close(), runner.new())),
    ("after it was closed", lambda runner, used: (runner.free(used), runner.close(), runner.close())),
]


@pytest.mark.parametrize(("problem", "misuse"), MISUSES)
def test_misuse_is_noticed(problem: str, misuse: Callable[[FakeRunner, FakeKeysValues], object]) -> None:
    runner = FakeRunner()
    used = runner.new()
    read(runner, used, [1, 2, 3], 0)
    with pytest.raises(ProtocolBroken, match=problem):
        misuse(runner, used)


def test_another_thread_is_noticed() -> None:
    runner, caught = FakeRunner(), []
    runner.new()

    def use() -> None:
        try:
            runner.new()
        except ProtocolBroken as error:
            caught.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert len(caught) == 1


def test_a_failing_step_leaves_a_part_of_its_slices_read() -> None:
    runner = FakeRunner(fail_at={1})
    first, second = runner.new(), runner.new()
    with pytest.raises(FakeRunnerError, match="step 1"):
        runner.step([Slice(first, [1], 0, False), Slice(second, [1], 0, False)])
    assert (len(first.cells), len(second.cells)) == (1, 0)


def test_memory_is_counted_in_tiles() -> None:
    runner = FakeRunner()
    keys_values = runner.new()
    assert [runner.bytes_for(n) for n in (0, 1, 64, 65)] == [0, 64, 64, 128]
    read(runner, keys_values, [1] * 65, 0)
    runner.truncate(keys_values, 1)
    assert (keys_values.n_bytes, runner.allocated_bytes) == (128, 128)
    assert runner.fork(keys_values, 1).n_bytes == 64
    assert runner.peak_bytes == 192

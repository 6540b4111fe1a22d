"""Task: a step that asks a language model about every row.

Owns the way from a row to a request and from a completion to rows; a row that fails gives None and its reason, and
never costs another row. It knows neither how a model is called (`generating.py`) nor what is asked.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import field, replace
from typing import Any, ClassVar, Self, TypeAlias

from loguru import logger

from llmkit.backend import BackendLLM
from llmkit.base import BaseLLM
from llmkit.errors import LLMKitError, ParameterError
from llmkit.params import GenerationParams
from llmkit.prompts import AUTO, PromptStyle, as_style
from llmkit.registry import load
from llmkit.structured import Constraint, Kind
from llmkit.tasks.generating import FAULTS_OF_ALL, Outcome, check_params, completed, outcomes
from llmkit.tasks.identity import described
from llmkit.tasks.metadata import METADATA, Notes, error_key, failure
from llmkit.tasks.row_form import RowForm
from llmkit.tasks.statistics import Statistics, token_counts
from llmkit.tasks.step import Row, Step
from llmkit.types import Completion, Request, as_messages

ChatType: TypeAlias = "list[dict[str, Any]]"
"""Messages as dictionaries with `role` and `content`, the form of OpenAI's chat completions."""

Rounds: TypeAlias = "Generator[list[Request], list[Completion], Row]"


class Task(Step):
    """A step with a language model. Subclasses define `inputs`, `format_input`, `outputs` and `format_output`.

    May be used from many threads if its model may.

    Attributes:
        llm: a model; or what `llmkit.load` takes, or a function that gives a model, called by `load`.
        num_generations: texts for each row; each becomes a row of its own.
        group_generations: the texts of a row stay in one row, whose outputs and metadata become lists.
        params: generation parameters of this task's requests; they go before the model's own.
        prompt_style: render the messages in this style rather than by the model's chat template: a name, a dictionary,
            or a `PromptStyle`.
        add_raw_output: note the model's text as `raw_output_<name>`.
        add_raw_input: note the messages as `raw_input_<name>`.
        add_statistics: note token counts as `statistics_<name>`.
        metadata_column: the column of these notes; `distilabel_metadata` gives that library's.

    Raises:
        ParameterError: a parameter breaks its rule.
        UnknownParameter: `params` has a name that is no generation parameter.
    """

    llm: BaseLLM | str | Callable[[], BaseLLM]
    num_generations: int = 1
    group_generations: bool = False
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    prompt_style: str | PromptStyle | Mapping[str, object] | None = None
    add_raw_output: bool = True
    add_raw_input: bool = False
    add_statistics: bool = False
    metadata_column: str = METADATA

    FIXED: ClassVar[frozenset[str]] = Step.FIXED | {"llm", "metadata_column"}

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded = self.llm if isinstance(self.llm, BaseLLM) else None
        self._statistics = Statistics()
        if not isinstance(self.llm, str) and not callable(self.llm):
            raise ParameterError(f"llm must be a model, a name to load or a function that gives one, got {self.llm!r}")
        if isinstance(self.num_generations, bool) or self.num_generations < 1:
            raise ParameterError(f"num_generations must be at least 1, got {self.num_generations!r}")
        params = GenerationParams(**self.params)
        if params.num_return_sequences is not None:
            raise ParameterError("params must not set num_return_sequences; num_generations does")
        # Made once: checking parameters costs more than everything else that is done for a row.
        self._params_of_one = params.replace(num_return_sequences=1)
        self._params_of_row = params.replace(num_return_sequences=self.num_generations)
        if self.prompt_style not in (None, AUTO):
            as_style(self.prompt_style)
        super().__post_init__()
        if self._loaded is not None:
            check_params(self._loaded, params)

    # --- what a subclass defines ------------------------------------------------------------------------------------

    @abstractmethod
    def format_input(self, input: Row) -> ChatType:
        """The messages that ask about a row."""

    @abstractmethod
    def format_output(self, output: str | None, input: Row) -> Row:
        """The outputs that a generated text means, without `model_name`; called for texts only, never for None."""

    def request_fields(self, input: Row) -> Mapping[str, Any]:
        """Further fields of a row's request, such as the choices that it allows."""
        return {}

    def rounds_before(self, input: Row) -> Rounds:
        """What must be asked before a row itself can be: yields lists of requests, and is sent their completions.

        Returns:
            The row as `format_input` and `format_output` get it.
        """
        return input
        yield  # pyright: ignore[reportUnreachable]  # makes it a generator

    # --- life -------------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Load the model, if it was given as a name or a function."""
        with self._lock:
            if self._loaded is None:
                self._loaded = self._made()

    def unload(self) -> None:
        """Close the model that `load` loaded; one that was passed is its owner's to close."""
        with self._lock:
            if self._loaded is not None and self._loaded is not self.llm:
                self._loaded.close()
                self._loaded = None

    @property
    def model(self) -> BaseLLM:
        """The model, loaded if it is not yet."""
        if self._loaded is None:
            self.load()
        assert self._loaded is not None
        return self._loaded

    def _made(self) -> BaseLLM:
        """A model of this task's own; closed again where it cannot honour the parameters."""
        make = self.llm
        model: object = load(make) if isinstance(make, str) else make() if callable(make) else make
        if not isinstance(model, BaseLLM):
            raise ParameterError(f"llm must be a function that gives a model, it gave {model!r}")
        try:
            check_params(model, self._params_of_one)
        except LLMKitError:
            model.close()
            raise
        return model

    # --- working ----------------------------------------------------------------------------------------------------

    @property
    def statistics(self) -> Statistics:
        """Totals over all calls of `process`."""
        return self._statistics

    def _transformed(self, rows: list[Row], seeds: Sequence[int] | None) -> Iterator[list[Row]]:
        form = self._form()
        form.check_new(rows)
        talks = [self._talk(form, row, None if seeds is None else seeds[at]) for at, row in enumerate(rows)]
        new_rows: list[list[Row]] = [[] for _ in rows]
        asking: dict[int, list[Request]] = {}

        def go_on(at: int, answers: list[Outcome] | None) -> None:
            try:
                asking[at] = talks[at].send(answers)
            except StopIteration as finished:
                asking.pop(at, None)
                new_rows[at] = finished.value

        for at in range(len(rows)):
            go_on(at, None)
        while asking:
            answers = iter(self._outcomes([request for requests in asking.values() for request in requests]))
            for at, requests in list(asking.items()):
                go_on(at, [next(answers) for _ in requests])
        self._count(Statistics(rows=len(rows), failures=sum(map(self._has_failed, new_rows))))
        yield [row for group in new_rows for row in group]

    def transform(self, rows: list[Row]) -> Iterator[list[Row]]:
        """The new rows for all of these, in one list; all rows go to the model together."""
        return self._transformed(rows, None)

    def _talk(
        self, form: RowForm, row: Row, seed: int | None
    ) -> Generator[list[Request], list[Outcome] | None, list[Row]]:
        """The whole way of one row: yields what to ask, is sent the answers, and returns the new rows."""
        messages: ChatType | None = None
        try:
            form.check_inputs(row)
            asked = yield from self._rounds(row, seed)
            messages = self.format_input(asked)
            answers = yield [self._request(messages, asked, seed)]
            [completion] = completed(answers)
        except FAULTS_OF_ALL:
            raise
        except Exception as error:  # noqa: BLE001 - a row whose way ends here gives None and the reason
            nothing = (form.nothing(), self._notes(messages, None, error))
            return form.new_rows(row, [nothing] * self.num_generations, self._name_of_model)
        texts = [self._formatted(form, completion, n, asked, messages) for n in range(len(completion.choices))]
        return form.new_rows(row, texts, self._name_of_model)

    def _rounds(self, row: Row, seed: int | None) -> Generator[list[Request], list[Outcome] | None, Row]:
        rounds = self.rounds_before(row)
        answers: list[Completion] | None = None
        while True:
            try:
                requests = next(rounds) if answers is None else rounds.send(answers)
            except StopIteration as finished:
                return finished.value
            outcomes = yield [replace(r, params=r.params.over(self._params(seed, 1))) for r in requests]
            answers = completed(outcomes)

    def _request(self, messages: ChatType, input: Row, seed: int | None) -> Request:
        return self.request(messages, self._params(seed, self.num_generations), **self.request_fields(input))

    def request(self, messages: ChatType, params: GenerationParams | None = None, **fields: Any) -> Request:
        """A request of this task, for `rounds_before`: in its prompt style, and with its parameters."""
        fields = {"prompt_style": self.prompt_style, **fields}
        return Request(as_messages(messages), params or GenerationParams(), **fields)

    def constraint(self, kind: Kind, value: Any) -> dict[str, Any]:
        """The field of a request that keeps a text to a schema or to choices, where the model's backend can."""
        if not isinstance(self.model, BackendLLM) or kind not in self.model.capabilities.structured:
            return {}
        if kind == "choice" and self.prompt_style is not None:
            lead = as_style(self.prompt_style, self.model.model_name).response_lead
            value = [lead + choice for choice in value]
        return {"constraint": Constraint.of(**{kind: value})}

    def _params(self, seed: int | None, n: int) -> GenerationParams:
        params = self._params_of_one if n == 1 else self._params_of_row
        return params if seed is None else params.replace(seed=seed)

    def _outcomes(self, requests: list[Request]) -> list[Outcome]:
        found = outcomes(self.model, requests)
        usages = [outcome.usage for outcome in found if isinstance(outcome, Completion)]
        n_read = sum(usage.prompt_tokens or 0 for usage in usages)
        self._count(Statistics(0, 0, n_read, sum(usage.completion_tokens or 0 for usage in usages)))
        return found

    def _count(self, more: Statistics) -> None:
        with self._lock:
            self._statistics += more

    # --- what came of it --------------------------------------------------------------------------------------------

    def _form(self) -> RowForm:
        return RowForm(
            self.name,
            self._required_inputs,
            tuple(name for name in self.outputs if name != "model_name"),
            self._column_names(),
            self.metadata_column,
            self.group_generations,
        )

    @property
    def _name_of_model(self) -> str:
        return self.model.model_name or type(self.model).__name__

    def _formatted(
        self, form: RowForm, completion: Completion, choice: int, input: Row, messages: ChatType
    ) -> tuple[Row, Notes]:
        """Outputs and notes of one text."""
        text, error = completion.choices[choice].text, None
        try:
            outputs = self.format_output(text, input)
            form.check_outputs(outputs)
        except FAULTS_OF_ALL:
            raise
        except Exception as problem:  # noqa: BLE001 - the text is kept, and the reason noted beside it
            outputs, error = form.nothing(), problem
        notes = self._notes(messages, text, error)
        if self.add_statistics:
            notes[f"statistics_{self.name}"] = token_counts(completion, choice)
        return outputs, notes

    def _notes(self, messages: ChatType | None, text: str | None, error: Exception | None) -> Notes:
        notes: Notes = {}
        if self.add_raw_output:
            notes[f"raw_output_{self.name}"] = text
        if self.add_raw_input:
            notes[f"raw_input_{self.name}"] = messages
        if error is not None:
            reason = f"{type(error).__name__}: {error}"
            logger.warning("task {}: a row failed: {}", self.name, reason)
            notes[error_key(self.name)] = reason
        return notes

    def _has_failed(self, new_rows: Sequence[Row]) -> bool:
        return any(failure(row, self.name, self.metadata_column) is not None for row in new_rows)

    # --- parameters -------------------------------------------------------------------------------------------------

    def with_runtime_parameters(self, **values: Any) -> Self:
        """A copy with these parameters; the entries of `params` go before the constructor's, one by one."""
        if "params" in values:
            values["params"] = {**self.params, **values["params"]}
        return super().with_runtime_parameters(**values)

    def identity(self) -> dict[str, Any]:
        """As for a step, and the model: its class, name, parameters and fingerprint. Loads the model.

        A model without a fingerprint promises nothing, so results of it cannot be told from those of a changed one.
        """
        model = self.model
        return {
            **super().identity(),
            "model": {
                "class": f"{type(model).__module__}.{type(model).__qualname__}",
                "name": model.model_name,
                "params": described(dict(model.params)),
                "fingerprint": getattr(model, "fingerprint", None),
            },
        }

    def _described_parameters(self) -> dict[str, Any]:
        return {name: value for name, value in super()._described_parameters().items() if name != "llm"}

    def __getstate__(self) -> dict[str, Any]:
        """For another process: without the lock, and without a model that `load` would load again."""
        return {**self.__dict__, "_lock": None, "_loaded": self._loaded if self._loaded is self.llm else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

"""Tools: a chat in which the model calls a function. The model is scripted, for the demo model knows no tools."""

import json

from llmkit.testing import ScriptedLLM

CALL = json.dumps({"name": "weather", "arguments": {"city": "Rome", "days": 2}})


def weather(city: str, days: int = 1) -> dict[str, list[int]]:
    """Tell the temperatures of the next days.

    Args:
        city: the city's name
        days: how many days
    """
    return {city: [20 + day for day in range(days)]}


with ScriptedLLM(lambda said: f"<tool_call>{CALL}</tool_call>" if "Rome" in said and "?" in said else said) as llm:
    (call,) = llm.complete("How warm will it be in Rome?", tools=[weather]).tool_calls
    print(call.name, dict(call.arguments), call.error)
    print(llm.chat("How warm will it be in Rome?", tools=[weather]))
    print([message.role for message in llm.history])

"""What a model may call (`definitions.py`), its calls as it writes them (`calls.py`), and their rounds (`rounds.py`).

It knows neither models nor chat templates.
"""

from llmkit.tools.calls import Answer, as_call, checked_call, read_answer
from llmkit.tools.definitions import Tool, as_tools
from llmkit.tools.rounds import MAX_TOOL_ROUNDS, ToolRounds

__all__ = ["MAX_TOOL_ROUNDS", "Answer", "Tool", "ToolRounds", "as_call", "as_tools", "checked_call", "read_answer"]

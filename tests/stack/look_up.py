"""For veRL's tool agent: a tool that never replies the same, and a parser that reads a call of it in all that
a policy writes: a random policy writes none."""

from __future__ import annotations

import json
import secrets
from typing import Any

from verl.experimental.agent_loop.tool_parser import FunctionCall, ToolParser
from verl.tools.function_tool import function_tool


@function_tool
def look_up(word: str) -> str:
    """Look a word up.

    Args:
        word: any.
    """
    return f"page {secrets.randbelow(10**9)}"


@ToolParser.register("all_is_a_call")
class AllIsACall(ToolParser):
    @property
    def stop_token_ids(self) -> list[int]:
        """A third of the vocabulary, so that turns of a random policy are short."""
        return list(range(0, len(self.tokenizer), 3))

    async def extract_tool_calls(self, responses_ids: list[int], tools: Any = None) -> tuple[str, list[FunctionCall]]:
        text = self.tokenizer.decode(responses_ids, skip_special_tokens=True)
        return text, [FunctionCall(name="look_up", arguments=json.dumps({"word": text}))]

"""LlamaIndex's class for whatever speaks as OpenAI does."""

import asyncio
import json
import os
from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

ASKED = [ChatMessage(role="user", content="Name the capital of France.")]


def get_weather(is_celsius: bool) -> str:
    """The weather of Paris."""
    return "18 degrees" if is_celsius else "64 degrees"


llm = OpenAILike(
    model=os.environ["MODEL"],
    api_base=os.environ["OPENAI_BASE_URL"],
    api_key="anything",
    is_chat_model=True,
    is_function_calling_model=True,
    context_window=2048,
    max_tokens=60,
    temperature=0,
    max_retries=0,
)
raw = OpenAILike(**{**llm.dict(), "api_key": "anything", "is_chat_model": False, "max_tokens": 8})
calls = llm.chat_with_tools(
    [FunctionTool.from_defaults(get_weather)], user_msg="Weather?", tool_required=True
)


async def chat() -> Any:
    return (await llm.achat(ASKED)).message.content


print(
    json.dumps(
        {
            "chat": llm.chat(ASKED).message.content,
            "achat": asyncio.run(chat()),
            "streamed": list(llm.stream_chat(ASKED))[-1].message.content,
            "completed": raw.complete("The capital of France is").text,
            "completed_streamed": list(raw.stream_complete("The capital of France is"))[-1].text,
            "calls": [
                [call.tool_name, call.tool_kwargs]
                for call in llm.get_tool_calls_from_response(calls)
            ],
        }
    )
)

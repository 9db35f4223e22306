"""The official SDK's asynchronous half, on asyncio and on trio."""

import asyncio
import json
import os
from typing import Any

import openai
import trio

ASKED: Any = {
    "model": os.environ["MODEL"],
    "messages": [{"role": "user", "content": "Name the capital of France."}],
    "temperature": 0,
    "max_tokens": 12,
}


async def ask() -> dict[str, Any]:
    async with openai.AsyncOpenAI(max_retries=0) as client:
        answer = await client.chat.completions.create(**ASKED)
        stream = await client.chat.completions.create(**ASKED, stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        async with client.chat.completions.stream(**ASKED) as events:
            async for _ in events:
                pass
            helped = await events.get_final_completion()
    return {
        "text": answer.choices[0].message.content,
        "streamed": "".join(pieces),
        "helped": helped.choices[0].message.content,
    }


print(json.dumps({"asyncio": asyncio.run(ask()), "trio": trio.run(ask)}))

"""pydantic-ai: an agent's answer, its form, its tool, and a stream."""

import asyncio
import json
import os
from typing import Any, Literal

import pydantic
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class City(pydantic.BaseModel):
    country: Literal["France", "Spain"]
    is_capital: bool


model = OpenAIChatModel(os.environ["MODEL"], provider=OpenAIProvider())
SETTINGS: Any = {"temperature": 0, "max_tokens": 100}
QUESTION = "Is Paris the capital of France?"


async def main() -> dict[str, Any]:
    plain = Agent(model, model_settings={**SETTINGS, "max_tokens": 12})
    form = Agent(model, output_type=City, model_settings=SETTINGS)
    text = await plain.run(QUESTION)
    async with plain.run_stream(QUESTION) as stream:
        streamed = await stream.get_output()
    city = await form.run(QUESTION)
    async with form.run_stream(QUESTION) as form_stream:
        streamed_city = await form_stream.get_output()
    return {
        "text": text.output,
        "n_tokens": text.usage.output_tokens,
        "streamed": streamed,
        "form": city.output.model_dump(),
        "streamed_form": streamed_city.model_dump(),
    }


print(json.dumps(asyncio.run(main())))

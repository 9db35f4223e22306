"""instructor: forms by tool call, by JSON schema and streamed."""

import json
import os
from typing import Any, Literal

import instructor
import openai
import pydantic


class City(pydantic.BaseModel):
    """A city of the question."""

    country: Literal["France", "Spain"]
    is_capital: bool


ASKED: Any = {
    "model": os.environ["MODEL"],
    "messages": [{"role": "user", "content": "Is Paris the capital of France?"}],
    "temperature": 0,
    "max_tokens": 100,
    "max_retries": 0,
}
got = {}
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(openai.OpenAI(max_retries=0), mode=mode)
    got[mode.name] = client.chat.completions.create(response_model=City, **ASKED).model_dump()
    partial = client.chat.completions.create_partial(response_model=City, **ASKED)
    got[f"{mode.name} streamed"] = list(partial)[-1].model_dump()
print(json.dumps(got))

"""Simon Willison's llm, told of the peer in extra-openai-models.yaml. It is a command."""

import json
import os
import pathlib
import subprocess
import sys

MODEL = os.environ["MODEL"]
folder = pathlib.Path(os.environ["LLM_USER_PATH"])
folder.joinpath("extra-openai-models.yaml").write_text(
    f"""\
- model_id: donated
  model_name: {MODEL}
  api_base: {os.environ["OPENAI_BASE_URL"]}
  supports_tools: true
  supports_schema: true
"""
)


def llm(*arguments: str) -> str:
    command = [str(pathlib.Path(sys.executable).with_name("llm")), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


PROMPT = ["-m", "donated", "Name the capital of France.", "-o", "temperature", "0"]
SCHEMA = {
    "type": "object",
    "properties": {"country": {"enum": ["France", "Spain"]}},
    "required": ["country"],
    "additionalProperties": False,
}
print(
    json.dumps(
        {
            "models": llm("models", "list"),
            "streamed": llm(*PROMPT, "-o", "max_tokens", "12"),
            "whole": llm(*PROMPT, "-o", "max_tokens", "12", "--no-stream"),
            "form": llm(*PROMPT, "-o", "max_tokens", "60", "--schema", json.dumps(SCHEMA)),
        }
    )
)

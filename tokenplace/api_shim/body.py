"""Bodies of requests: bytes to JSON, JSON to a pydantic model. Start at `read_json`.

Not left to FastAPI, which parses before a route can look at what kind of body came, and reads
UTF-16 too.
"""

from __future__ import annotations

import json
from typing import Final, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from tokenplace.api_shim.refusal import Refusal, Refused, refusal_of_invalid

MAX_EXACT: Final = 2.0**53  # beyond it floats leave integers out

Model = TypeVar("Model", bound=BaseModel)


async def read_json(http: Request) -> object:
    """The body as JSON. Raises `Refused` that says where it is none."""
    return parse_json(await http.body())


def parse_json(data: bytes) -> object:
    """JSON in UTF-8. Raises `Refused` that says where it is none."""
    try:
        return json.loads(
            data.decode("utf-8-sig"), parse_constant=_refuse_constant, parse_float=_number
        )
    except json.JSONDecodeError as error:
        where = f"{error.msg} at line {error.lineno}, column {error.colno}"
    except UnicodeDecodeError as error:
        where = f"byte {error.start + 1} is not UTF-8"
    except RecursionError:
        where = "it is nested too deep"
    except ValueError:  # Python reads no integers of thousands of digits
        where = "a number has too many digits"
    raise _not_json(where)


def parse_body(kind: type[Model], value: object) -> Model:
    """A body of this kind. Raises `Refused` that names the first parameter at fault."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        refusal = refusal_of_invalid(error.errors(include_url=False)[0])
    raise Refused(refusal)


def _number(text: str) -> float:
    """JSON has one kind of number, and some languages write all of them with a point: 4.0 is an
    integer to a schema.
    """
    value = float(text)
    is_whole = value.is_integer() and abs(value) <= MAX_EXACT
    return int(value) if is_whole else value


def _refuse_constant(name: str) -> NoReturn:
    raise _not_json("NaN and Infinity are no numbers there")


def _not_json(where: str) -> Refused:
    return Refused(Refusal(400, f"The body is not valid JSON: {where}.", "invalid_json"))

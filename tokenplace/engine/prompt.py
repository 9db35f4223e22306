"""What a request asks a model to read, as its worker takes it. Start at `prompt_of`.

The parent's side. Text from outside never becomes control tokens: a raw prompt is text throughout,
and a chat's contents are kept apart from its template's own words (`guard.py`). Ids that an app
gives are not text: it has chosen each token itself, so control tokens among them are what it wants,
as are those of any raw prompt that it could write with a model of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenplace.engine.guard import Segment
from tokenplace.engine.template import TemplateRenderer
from tokenplace.errors import InvalidRequest
from tokenplace.generation import THINK_TAGS, ChatInput, IdsInput, Input, TextInput


@dataclass(frozen=True, slots=True)
class Prompt:
    """Text in segments, or token ids; one of them is empty. begun: as in `Accepted`."""

    segments: tuple[Segment, ...] = ()
    ids: tuple[int, ...] = ()
    begun: str = ""

    @property
    def n_bytes(self) -> int:
        """Of its text, in UTF-8."""
        return sum(len(text.encode()) for text, _ in self.segments)


async def prompt_of(asked: Input, as_of: str, renderer: TemplateRenderer | None) -> Prompt:
    """Raises `InvalidRequest`, and for a chat what `TemplateRenderer.render` raises.

    renderer: not None for a chat.
    """
    match asked:
        case TextInput(prompt):
            check_text(prompt, "prompt")
            return Prompt(((prompt, False),))
        case IdsInput(ids):
            if not ids:
                raise InvalidRequest("The prompt is empty.", param="prompt_ids")
            return Prompt(ids=ids)
        case ChatInput(messages) as chat:
            for message in messages:
                check_text(message.role, "messages")
                check_text(message.content, "messages")
            assert renderer is not None, "checked before"
            segments = await renderer.render(chat, as_of)
            return Prompt(segments, begun=begun_by(segments))


def begun_by(segments: tuple[Segment, ...]) -> str:
    """The tag of a thought that the template has opened for the answer, if its own last words are
    one; else "".
    """
    if not segments:
        return ""
    text, is_templates_own = segments[-1]
    text = text.rstrip()
    return next((tag for tag in THINK_TAGS if is_templates_own and text.endswith(tag)), "")


def check_text(text: str, param: str) -> None:
    """Raises `InvalidRequest` for text that has no UTF-8 form."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest("The text is not valid Unicode.", param=param) from None

"""How a running peer's log is written. Start at `set_up_logs`.

Lines go to stderr. As text for people, or as one JSON object a line for programs: `time`, `level`,
`logger`, and `event` with its fields, or `message`.
"""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from typing import Any, Final

from tokenplace.cli.output import fail

LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")
TEXT_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
JSON: Final = "json"


def set_up_logs(form: str) -> None:
    """Write what TOKENPLACE_LOG says, in this form (`settings.LOG_FORMATS`). Ends the command if it
    names no level."""
    level = os.environ.get("TOKENPLACE_LOG", "WARNING").upper()
    if level not in LEVELS:
        fail(f"TOKENPLACE_LOG={level} is no log level", f"choose one of {', '.join(LEVELS)}")
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == JSON else logging.Formatter(TEXT_FORMAT))
    logging.basicConfig(level=level, handlers=[handler])


class JsonFormatter(logging.Formatter):
    """One JSON object a line. Of an exception its type alone: its text may hold a prompt."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        at = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
        }
        fields = getattr(record, "fields", None)  # of `router.journal_lines`
        if fields is None:
            line["message"] = record.getMessage()
        else:
            line |= {"event": getattr(record, "event", ""), **fields}
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
        return json.dumps(line, ensure_ascii=False)

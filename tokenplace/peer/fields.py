"""Reading a map from outside field by field, each with a type and a limit. Start at `Fields`.

Pure. Fields that nobody asks for are never looked at, so unknown ones are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenplace.errors import RemoteProtocolError


@dataclass(frozen=True, slots=True)
class Fields:
    """A map from outside. Every method raises `RemoteProtocolError` naming the field.

    kind: what the map is, for the error's text.
    """

    kind: str
    values: dict[object, object]

    def fault(self, name: str) -> RemoteProtocolError:
        """The error for this field, to be raised."""
        return RemoteProtocolError(f"{self.kind}: field {name!r} is missing or wrong")

    def integer(self, name: str, most: int) -> int:
        """0 to `most`."""
        value = self.values.get(name)
        # `type`, for to isinstance a bool is an int.
        if type(value) is not int or not 0 <= value <= most:
            raise self.fault(name)
        return value

    def number(self, name: str, most: float) -> float:
        """0 to `most`, whole or not."""
        value = self.values.get(name)
        # NaN fails the comparison.
        if isinstance(value, (int, float)) and type(value) is not bool and 0 <= value <= most:
            return float(value)
        raise self.fault(name)

    def data(self, name: str, max_bytes: int) -> bytes:
        """Bytes, maybe none."""
        value = self.values.get(name)
        if not isinstance(value, bytes) or len(value) > max_bytes:
            raise self.fault(name)
        return value

    def text(self, name: str, max_chars: int) -> str:
        """Printable text, maybe empty."""
        return self._as_text(name, self.values.get(name), max_chars)

    def optional_text(self, name: str, max_chars: int) -> str:
        """The same; empty where the field is not there."""
        return self.text(name, max_chars) if name in self.values else ""

    def texts(self, name: str, most: int, max_chars: int) -> tuple[str, ...]:
        """A list of at most `most` texts."""
        return tuple(self._as_text(name, item, max_chars) for item in self._items(name, most))

    def maps(self, name: str, most: int) -> list[Fields]:
        """A list of at most `most` maps."""
        read = []
        for item in self._items(name, most):
            if not isinstance(item, dict):
                raise self.fault(name)
            read.append(Fields(f"{self.kind}.{name}", item))
        return read

    def _items(self, name: str, most: int) -> list[object]:
        items = self.values.get(name)
        if not isinstance(items, list) or len(items) > most:
            raise self.fault(name)
        return items

    def _as_text(self, name: str, value: object, max_chars: int) -> str:
        # Printable, because these texts reach terminals: an escape sequence would act there.
        if not isinstance(value, str) or len(value) > max_chars or not value.isprintable():
            raise self.fault(name)
        return value

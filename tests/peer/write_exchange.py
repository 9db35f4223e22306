"""Writes the exchange's tables into docs/protocol.md: `python -m tests.peer.write_exchange`.

Start at `tables_text`. What stands between the two marks of the page is drawn from
`tokenplace.peer.exchange`; a test compares them.
"""

from __future__ import annotations

from pathlib import Path

from tokenplace import defaults
from tokenplace.peer.exchange import DONOR, REQUESTER, Input, Limit, State, Table

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "protocol.md"
BEGIN = "<!-- from the code: python -m tests.peer.write_exchange -->\n"
END = "<!-- up to here -->\n"


def with_tables(page: str) -> str:
    """The page with the tables as they are in the code."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + tables_text() + END + after


def tables_text() -> str:
    """Both roles: a diagram (Mermaid) and a table each."""
    return "\n".join(
        f"**{role}**\n\n```mermaid\n{diagram(table)}```\n\n{markdown(table)}"
        for role, table in (("Requester", REQUESTER), ("Donor", DONOR))
    )


def diagram(table: Table) -> str:
    """The table as a Mermaid state diagram, one arrow for each pair of states. `cancel` is not
    drawn: it leads from every state to `cancelled`.
    """
    lines = ["stateDiagram-v2", f"    [*] --> {next(iter(table))}"]
    ends: dict[State, None] = {}
    for state in table:
        for target, whats in targets(table, state).items():
            lines.append(f"    {state} --> {target}: {', '.join(whats)}")
            if target not in table:
                ends[target] = None
    lines += [f"    {end} --> [*]" for end in ends]
    return "\n".join(lines) + "\n"


def markdown(table: Table) -> str:
    """The table as Markdown: the deadlines that run in each state, and what leads where."""
    lines = ["| state | deadlines | leads to |", "|---|---|---|"]
    for state, row in table.items():
        limits = ", ".join(f"{what}: {length(what)}" for what in row if isinstance(what, Limit))
        moves = "; ".join(
            f"`{target}`: {', '.join(whats)}" for target, whats in targets(table, state).items()
        )
        lines.append(f"| `{state}` | {limits} | {moves} |")
    return "\n".join(lines) + "\n"


def targets(table: Table, state: State) -> dict[State, list[Input | Limit]]:
    """Where a state leads to, and by what, without `cancel`."""
    found: dict[State, list[Input | Limit]] = {}
    for what, target in table[state].items():
        if what is not Input.CANCEL:
            found.setdefault(target, []).append(what)
    return found


def length(limit: Limit) -> str:
    """How long a deadline is, in words."""
    if limit is Limit.FIRST_TOKEN:
        factor, grace_s = defaults.FIRST_TOKEN_ETA_FACTOR, defaults.FIRST_TOKEN_GRACE_S
        wait_s = f"{defaults.MAX_WAIT_S:g} s of waiting in all"
        return f"{factor:g} \N{MULTIPLICATION SIGN} eta + {grace_s:g} s, at most {wait_s}"
    if limit is Limit.STILL:
        return f"{limit.seconds():g} s, while queued {defaults.QUEUE_STILL_TIMEOUT_S:g} s"
    return f"{limit.seconds():,g} s"


def main() -> None:
    PAGE.write_text(with_tables(PAGE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()

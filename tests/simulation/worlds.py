"""Small worlds of a test's own. Start at `plan_of`."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.simulation.donors import DonorSpec, Nature
from benchmarks.simulation.faults import Fault
from benchmarks.simulation.network import Line
from benchmarks.simulation.workload import Habits
from benchmarks.simulation.world import Plan, RequesterSpec
from tokenplace.engine.fake import Faults
from tokenplace.engine.fake_model import FakeModel

TINY_MODEL = FakeModel(name="tiny", n_answer=(30, 40), decode_tps=20.0)
PLAIN = Habits(n_prompt=(3, 10), max_tokens=(50, 50), pause_s=1.0, is_plain=True, leaves=0.0)


def plan_of(
    *natures: Nature,
    chaos: tuple[Fault, ...] = (),
    chaos_s: float = 2.0,
    n_requests: int = 12,
    habits: Habits = PLAIN,
    lies: float = 1.0,
    faults: Faults | None = None,
) -> Plan:
    """One app that asks donors of one model. chaos: what befalls them, every `chaos_s` seconds."""
    spec = DonorSpec(TINY_MODEL, faults=faults or Faults())
    plan = Plan(
        tuple((replace(spec, nature=nature), Line()) for nature in natures),
        (RequesterSpec(n_apps=1, n_requests=n_requests),),
        (TINY_MODEL,),
        habits,
        lies=lies,
    )
    return replace(plan, chaos=chaos, chaos_s=chaos_s) if chaos else plan

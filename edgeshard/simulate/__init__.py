"""A chain on paper: the runtime's own schedule over stages and links that only take time.

plan ─► chain ─► engine (SimPy) ◄─► runtime.schedule;  engine ─► run ─► figures, timeline
"""

from __future__ import annotations

from edgeshard.simulate.chain import SimulatedChain, chain_of_plan, chain_of_spans
from edgeshard.simulate.engine import Arrival, Options, Run, simulate
from edgeshard.simulate.figures import Figures, figures
from edgeshard.simulate.timeline import chrome_trace, draw

__all__ = [
    "Arrival",
    "Figures",
    "Options",
    "Run",
    "SimulatedChain",
    "chain_of_plan",
    "chain_of_spans",
    "chrome_trace",
    "draw",
    "figures",
    "simulate",
]

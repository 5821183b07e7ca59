"""Gates: how much of each distilled token L_SD takes. The port, and a module for each that ships."""

from sdsearch.credit.gates.applied import gated
from sdsearch.credit.gates.ports import Gate, GatedTokens, open_gate, try_gate

__all__ = ["Gate", "GatedTokens", "gated", "open_gate", "try_gate"]

"""The gate by the rollout's outcome."""

from __future__ import annotations

from torch import Tensor

from sdsearch.credit.gates.ports import GatedTokens


def outcome(tokens: GatedTokens) -> Tensor:
    """1 where the teacher's log-ratio agrees with the outcome, else 0: above 0 in CORRECT rollouts, below in INCORRECT.

    Source: ours, after the papers that gate by outcome (SDAR's asymmetry is one); the outcome is the label's, the
    answer's metric above rho, whatever labels the block shows. A log-ratio of 0 agrees with nothing.
    """
    agrees_Q = tokens.log_ratio_Q > 0 if tokens.is_correct else tokens.log_ratio_Q < 0
    return agrees_Q.to(tokens.log_ratio_Q.dtype)

"""Which of the engines that have room is chosen: one file per policy, one table entry."""

from typing import Final

from components.router.policies.choice import Candidate, Choose
from components.router.policies.least_loaded import least_loaded
from components.router.policies.round_robin import round_robin

POLICIES: Final[dict[str, Choose]] = {"round_robin": round_robin, "least_loaded": least_loaded}

__all__ = ["POLICIES", "Candidate", "Choose"]

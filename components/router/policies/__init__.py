"""Which of the engines that have room is chosen: one file per policy, one table entry."""

from typing import Final

from components.router.policies.choice import Candidate, Choose, ClassBounds, Policy, Pool
from components.router.policies.least_loaded import least_loaded
from components.router.policies.round_robin import round_robin
from components.router.policies.segregate import pool_of

POLICIES: Final[dict[str, Policy]] = {
    "round_robin": Policy(round_robin),
    "least_loaded": Policy(least_loaded),
    "segregate": Policy(least_loaded, pool_of),
}

__all__ = ["POLICIES", "Candidate", "Choose", "ClassBounds", "Policy", "Pool"]

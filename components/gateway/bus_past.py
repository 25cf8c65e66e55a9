"""What clients on the bus may ask of the past: about requests of their own tenant.

They never speak to those who keep the past, who know every tenant: a gateway asks for them, with
the tenant that the broker has let through.
"""

from typing import Final

from bus import subjects
from bus.bus import Received
from bus.clients import tenant_of
from bus.errors import BusError
from bus.subjects import ANY
from components.host.host import Host
from schemas.client import ExplainGeneration, ExplainGenerationReply
from schemas.past import ExplainRequest, ExplainRequestReply, PastRefusal

#: Questions that one gateway asks for clients at the same time.
ASKING_MAX: Final = 64
ANSWER_S: Final = 30.0


class ClientsPast:
    """Hears the questions of one gateway's clients."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._asking = 0

    async def start(self) -> None:
        _ = await self._host.bus.subscribe(
            subjects.explain_generation(ANY), ExplainGeneration, self._on_explain, queue="gateway"
        )

    def _on_explain(self, question: Received[ExplainGeneration]) -> None:
        if question.reply is None:
            return
        if self._asking >= ASKING_MAX:
            self._host.counters.add("explanations_refused_total")
            self._refuse(question, "too_much", "too many questions wait: ask again")
            return
        self._asking += 1
        _ = self._host.tasks.spawn("explain for a client", self._explain(question))

    async def _explain(self, question: Received[ExplainGeneration]) -> None:
        asked = ExplainRequest(
            request_id=question.message.request_id, tenant=tenant_of(question.subject)
        )
        try:
            reply = await self._host.bus.ask(
                subjects.explain_request(), asked, ExplainRequestReply, timeout_s=ANSWER_S
            )
            self._host.bus.respond(question, ExplainGenerationReply(**dict(reply)))
        except BusError as error:
            self._host.log.debug("no explanation for a client: %s", error)
            self._refuse(question, "history_unavailable", "the past does not answer: ask again")
        finally:
            self._asking -= 1

    def _refuse(
        self, question: Received[ExplainGeneration], code: PastRefusal, detail: str
    ) -> None:
        reply = ExplainGenerationReply(
            request_id=question.message.request_id, found=False, refusal=code, detail=detail
        )
        self._host.bus.respond(question, reply)

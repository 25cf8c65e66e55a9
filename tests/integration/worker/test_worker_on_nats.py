"""The same workers on a real nats-server, with the permissions of their roles."""

from tests.integration.worker.fleet import fleet_on, story
from tests.support.host import EPOCH


async def test_p_and_d_hand_over_within_their_permissions(nats_server):
    async def connect(component, instance, epoch):
        return await nats_server.bus(component, instance, epoch=epoch)

    async with fleet_on(connect, "prefill-0", "decode-0") as yard:
        yard.pair(n=2, seed=1)
        yard.bodies["r2"] = yard.dispatch("decode-0", "r2", inline=False)
        for choice in range(2):
            assert await yard.finished("r1", choice) == story(choice=choice, seed=1)
        assert await yard.finished("r2") == story()
        entries, _, _ = await yard.resume("decode-0", ("r1", 1, 0, 30))
        assert [i for e in entries for i in e[4]] == story(seed=1)[0][30:]
        yard.cancel("decode-0")
        card, _ = await yard.card()
        assert card.model == "sim/words"
        await yard.idle("prefill-0", "decode-0")
        assert yard.hosts["decode-0"].steps("r1") == ["handed_over"]
        for host in (*yard.hosts.values(), yard.gateway, yard.router):
            assert host.bus.counters["not_allowed_total"] == 0
        assert yard.hosts["prefill-0"].epoch == EPOCH

"""Which engine the settings ask for."""

from components.domain.profiles import profile_named
from components.host.host import Host
from components.worker.engine import Engine
from components.worker.settings import WorkerSettings
from components.worker.simulated.engine import SimulatedEngine, SimulatedModel
from components.worker.simulated.link import SimulatedLink


def make_engine(host: Host, settings: WorkerSettings) -> Engine:
    """The engine, not yet started."""
    makers = {"vllm": _vllm, "openai": _openai, "sglang": _sglang, "sim": _simulated}
    return makers[settings.engine](host, settings)


def _vllm(host: Host, settings: WorkerSettings) -> Engine:
    # Only here: whoever runs no vLLM shall not need it.
    from components.worker.vllm.engine import VllmEngine  # noqa: PLC0415
    from components.worker.vllm.loading import VllmModel, load_async_llm  # noqa: PLC0415
    from components.worker.vllm.odd_outputs import OddOutputs  # noqa: PLC0415
    from components.worker.vllm.page_reports import PageReports  # noqa: PLC0415
    from components.worker.vllm.wiring import wired  # noqa: PLC0415

    kv_transfer, exchange = wired(host, settings)
    model = VllmModel(
        name=settings.model,
        source=settings.model_source or settings.model,
        created_s=host.epoch // 1000,
        engine_args=settings.engine_args,
        kv_transfer=kv_transfer,
        kv_events=settings.kv_events,
        tool_parser=settings.tool_parser,
        reasoning_parser=settings.reasoning_parser,
        tool_strict_level=settings.tool_strict_level,
        grammar_cpu_s=settings.grammar_cpu_s,
        on_odd_output=OddOutputs(host).say,
    )
    pages = PageReports(host)
    if settings.kv_events:
        _ = host.tasks.spawn("page questions", pages.listen())
    return VllmEngine(
        lambda: load_async_llm(model), exchange, on_fault=host.fault, on_pages=pages.say
    )


def _sglang(host: Host, settings: WorkerSettings) -> Engine:
    from components.worker.sglang.engine import SglangEngine, SglangModel  # noqa: PLC0415

    model = SglangModel(
        name=settings.model,
        created_s=host.epoch // 1000,
        prefill_urls=settings.prefill_urls,
        decode_urls=settings.decode_urls,
        context_tokens_max=settings.context_tokens_max,
        seqs_max=settings.seqs_max,
        waiting_max=settings.waiting_max,
    )
    return SglangEngine(
        model,
        settings.sglang,
        clock=host.clock,
        count=host.counters.add,
        on_fault=host.fault,
    )


def _openai(host: Host, settings: WorkerSettings) -> Engine:
    from components.worker.openai_http.engine import OpenAIEngine  # noqa: PLC0415
    from components.worker.openai_http.settings import ServedModel  # noqa: PLC0415

    model = ServedModel(
        name=settings.model,
        created_s=host.epoch // 1000,
        url=settings.url,
        context_tokens_max=settings.context_tokens_max,
        seqs_max=settings.seqs_max,
        step_tokens_max=settings.step_tokens_max,
        kv_pages=settings.kv_pages,
    )
    return OpenAIEngine(model, settings.openai, clock=host.clock, on_fault=host.fault)


def _simulated(host: Host, settings: WorkerSettings) -> Engine:
    link = SimulatedLink(
        host.clock,
        gb_per_s=settings.transfer_gb_per_s,
        latency_ms=settings.transfer_latency_ms,
        speed=settings.speed,
    )
    return SimulatedEngine(
        SimulatedModel(settings.model, host.epoch // 1000, settings.context_tokens_max),
        profile_named(settings.profile),
        settings.limits(),
        clock=host.clock,
        link=link,
        speed=settings.speed,
        on_fault=host.fault,
    )

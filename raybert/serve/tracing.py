"""OpenTelemetry: what a request's time went into, across ingress and encoder.

Off unless one of OpenTelemetry's own variables names where traces go; its others (`OTEL_SERVICE_NAME`,
`OTEL_TRACES_SAMPLER`, `OTEL_EXPORTER_OTLP_HEADERS` ...) mean what they always do. A client's `traceparent` is taken up.
No text of a request is ever in a span.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Span, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from raybert.errors import SettingsError
from raybert.version import VERSION

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PARENTS = TraceContextTextMapPropagator()
Carrier = Mapping[str, str]


class Tracing:
    """One process's spans.

    Args:
        environment: variables; without any of `ENDPOINTS` nothing is traced.

    Attributes:
        tracer: begins spans; None where nothing is traced.

    Raises:
        SettingsError: traces are wanted, and OpenTelemetry's exporter is not installed.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.tracer: Tracer | None = None
        self._end: Callable[[], None] = lambda: None
        given = next((name for name in ENDPOINTS if environment.get(name)), None)
        if given is None or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
            return
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError as error:
            raise SettingsError(
                f"{given}: traces need OpenTelemetry's exporter; pip install 'raybert[tracing]'"
            ) from error
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        own = Resource({SERVICE_NAME: "raybert"}).merge(OTELResourceDetector().detect())
        provider = TracerProvider(resource=Resource.create().merge(own))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self.tracer, self._end = provider.get_tracer("raybert", VERSION), provider.shutdown

    def close(self) -> None:
        """Send what was not sent yet."""
        self._end()


_NO_SPAN = nullcontext(INVALID_SPAN)


def spanned(tracer: Tracer | None, name: str, **options: Any) -> AbstractContextManager[Span]:
    """A span around a block, with the options of `start_as_current_span`; where nothing is traced, as good as nothing.

    OpenTelemetry's own tracer that does nothing makes a span and a context all the same, several times a request.
    """
    return _NO_SPAN if tracer is None else tracer.start_as_current_span(name, **options)


def parent_of(headers: Carrier) -> Context:
    """The span that a caller's headers name, or none."""
    return _PARENTS.extract(headers)


def carrier() -> dict[str, str]:
    """The current span, for another process."""
    found: dict[str, str] = {}
    _PARENTS.inject(found)
    return found

"""An app as its makers would write it: nothing in it knows of an enclave, and the OTEL_ variables set the rest."""

import logging

import uvicorn
from fastapi import FastAPI, Request, Response
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client import REGISTRY, Counter
from prometheus_client.exposition import choose_encoder

spans = TracerProvider()
spans.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(spans)
metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())]))
records = LoggerProvider()
records.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))

log = logging.getLogger("app")
log.setLevel(logging.INFO)
log.addHandler(LoggingHandler(logger_provider=records))
tracer = trace.get_tracer("app")
handled = metrics.get_meter("app").create_counter("app.handled")
requests = Counter("app_requests", "Requests to /work.")
app = FastAPI()


@app.get("/work")
async def work(number: int):
    """Counts a request in both ways, within a span, and logs it there."""
    with tracer.start_as_current_span("work", attributes={"app.number": number}):
        requests.inc()
        handled.add(1)
        log.info("request %d", number)
    return {"number": number}


@app.get("/metrics")
async def page(request: Request):
    """The page for Prometheus, in the form that the reader asks for."""
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(REGISTRY), media_type=content_type)


uvicorn.run(app, host="0.0.0.0", port=8001, log_level="warning")

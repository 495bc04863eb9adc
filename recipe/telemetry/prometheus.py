"""A run's newest metrics for a Prometheus server to read, through its official client (`logging.prometheus_port`)."""

from __future__ import annotations

import errno
import re
import socket

from recipe.base.errors import UserError
from recipe.base.settings import LOCAL_HOST
from recipe.base.tables import as_float
from recipe.telemetry.sinks import Sink


class Exporter(Sink):
    """Serves gauges at /metrics of this host, one per tag: `train/loss` is `recipe_train_loss`.

    The last part of a tag below a family (a layer, a source, a phase) is its label `of`.

    Args:
        host: address to listen on.
    """

    def __init__(self, port: int, run_name: str, host: str = LOCAL_HOST):
        from prometheus_client import CollectorRegistry, Gauge, start_http_server

        self._registry, self._gauge, self._run = CollectorRegistry(), Gauge, run_name
        self._gauges: dict[str, Gauge] = {}
        try:
            self._server, self._thread = start_http_server(port, host, registry=self._registry)
        except socket.gaierror as error:
            raise UserError(f"logging.prometheus_host {host}: {error.strerror}; give an address of this host") from None
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            what = f"logging.prometheus_port {port}" if taken else f"logging.prometheus_host {host}, port {port}"
            advice = "choose a free one" if taken else "choose another"
            raise UserError(f"{what}: {error.strerror}; {advice}") from None

    @property
    def address(self) -> str:
        return str(self._server.server_address[0])

    def numbers(self, tags: dict[str, float], step: int) -> None:
        for tag, value in {**tags, "train/step": step}.items():
            group, name, *of = tag.split("/")
            if group == "eval":  # the source is the label
                name, of = of[-1], [name, *of[:-1]]
            metric = re.sub(r"\W", "_", "_".join(("recipe", group, name)))
            if metric not in self._gauges:
                self._gauges[metric] = self._gauge(metric, f"{group}/{name}", ["run", "of"], registry=self._registry)
            self._gauges[metric].labels(self._run, "/".join(of)).set(as_float(value))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

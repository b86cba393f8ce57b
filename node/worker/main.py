"""The worker's life: listen to the node, load the model, then compute until the node is gone.

The connection starts before torch is imported, so that the end of the node is noticed from the first moment on.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from mesh.errors import Misconfigured
from mesh.messages.worker import Abort, Doze, Dozed, Loading, Refusal, Step, Submit
from node.fan_out import FanOut
from node.worker.heap import keep_freed
from node.worker.protocol import NodeConnection, end_process

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.messages.worker import ToWorker
    from node.worker.intake import Prepared
    from node.worker.lanes import Lanes
    from node.worker.serving import Serving

_logger = logging.getLogger(__name__)

NICENESS = 5
"""The node's own process must answer heartbeats while the worker uses every core.

Two workers on two cores, under the load of `make soak`: a heartbeat took 80 ms (median round trip) at 0, 25 at 5, 6 at 19,
where any other program would starve the worker.
"""
SPINS = 10_000
"""How often OpenMP's threads look for work before they sleep, about 0.1 ms: to be woken takes longer than most products do.

88 M parameters on two cores, at 1, 8 and 32 requests: 76, 331, 522 tokens/s when they sleep at once, 122, 587, 889 with this.
Without a bound, steps took up to 80 times as long when other programs used the cores; see also `node.worker.cores`.
"""
GOODBYE = 5.0
"""Seconds that the node gets to read why the worker ends."""


def _give_way() -> None:
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    if hasattr(os, "getsid") and os.getsid(0) == os.getpid():
        # Where Linux shares the cores between sessions first, a nice process in a session of its own is not nice to others.
        with suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(NICENESS), encoding="ascii")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run until the node closes the socket. Exits 2 after a Refusal, 1 when the engine is broken for good."""
    options = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the whole group, and the node still wants to drain
    connection = NodeConnection(socket.socket(fileno=options.socket_fd))
    connection.start()
    connection.send(Loading(done=0, total=0, phase="starting"))
    _give_way()
    try:
        engine = _load(options, connection)
    except Misconfigured as error:
        _logger.error("%s", error)  # noqa: TRY400 - the message says it all
        connection.send(Refusal(message=error.message))
        connection.flush(GOODBYE)
        end_process(2)
    else:
        _serve(engine, connection)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="node.worker", description="Runs one model for a node; started by mesh-node.")
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face model directory with safetensors")
    parser.add_argument("--socket-fd", type=int, required=True, help="the inherited end of a stream socket pair")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--weights", default="auto", help="auto (as --dtype says), or int8 for the linear layers, on a CPU")
    parser.add_argument("--slots", type=int, default=16, help="requests computed at the same time, at most")
    parser.add_argument("--context", type=int, help="tokens of prompt and answer together; default: what model and memory allow")
    parser.add_argument("--cache-mib", type=int, help="most memory for keys and values; default: half of what is free")
    parser.add_argument("--adapter", action="append", default=[], type=_adapter, help="NAME=PATH: a LoRA adapter beside it")
    parser.add_argument("--threads", type=int, help="CPU threads; default: as many as are found best for the model")
    options = parser.parse_args(arguments)
    for name in ("slots", "context", "cache-mib", "threads"):
        if (value := getattr(options, name.replace("-", "_"))) is not None and value < 1:
            parser.error(f"--{name} must be at least 1")
    return options


def _adapter(text: str) -> tuple[str, Path]:
    name, equals, path = text.rpartition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH")
    return name, Path(path)


def _load(options: argparse.Namespace, connection: NodeConnection) -> Serving:
    # What the user has set for himself stays.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    os.environ["HF_HUB_OFFLINE"] = "1"  # a model is a local directory; nothing here may ask the network
    keep_freed()
    # Imported here: it takes seconds, and the connection must live meanwhile.
    import torch

    from node.worker.device import default_threads, used_memory
    from node.worker.loader import Options
    from node.worker.opening import open_model

    torch.set_num_threads(options.threads or default_threads())  # until the model is there to be tried
    chosen = Options(
        path=options.model,
        device=options.device,
        dtype=options.dtype,
        weights=options.weights,
        try_threads=options.threads is None,
        slots=options.slots,
        context=options.context,
        cache_mib=options.cache_mib,
        adapters=dict(options.adapter),
    )
    engine, ready = open_model(chosen, connection.send)
    ready = msgspec.structs.replace(ready, memory=used_memory(engine.weights.device))
    weights = f", weights in {ready.weights}" if ready.weights else ""
    threads = f", on {ready.threads} threads" if ready.threads else ""
    _logger.info("%s ready on %s in %s%s%s", ready.architecture, ready.device_name, ready.dtype, weights, threads)
    connection.send(ready)
    return engine


def _serve(engine: Serving, connection: NodeConnection) -> None:
    import torch

    from node.worker.cores import Cores
    from node.worker.lanes import Lanes
    from node.worker.pulse import Pulse

    pulse = Pulse()
    cores = Cores(torch.get_num_threads())
    fan_out = FanOut()
    lanes = Lanes(engine.intake, connection.post, limit=engine.queue)
    lanes.start()
    connection.alive = pulse.alive
    while True:
        messages = connection.receive(wait=engine.idle)
        pulse.begin()
        dozes = [message for message in messages if isinstance(message, Doze)]
        for message in messages:
            _hear(message, engine, lanes, fan_out)
        if any(doze.asleep for doze in dozes):
            engine.clear()
        if step := engine.step():
            cores.look()
            events = fan_out.merge(step.events, lambda number: _abort(number, engine, lanes))
            connection.send(Step(load=step.load, events=events))
        pulse.end(engine)
        for doze in dozes:  # moving weights is no step, however long it takes
            connection.send(_doze(doze, engine))


def _doze(doze: Doze, engine: Serving) -> Dozed:
    from node.worker.device import used_memory

    began, note, error = time.monotonic(), "", ""
    try:
        if doze.asleep:
            note = engine.doze()
        else:
            engine.rise()
    # No room on the device, most of all: others may have taken it. The model dozes on, and the node decides.
    except Exception as problem:
        _logger.exception("the model could not be %s", "put to sleep" if doze.asleep else "woken")
        error = f"{type(problem).__name__}: {next(iter(str(problem).splitlines()), '')}"
    done = "asleep" if engine.dozing else "awake"
    _logger.info("%s after %.2f s%s", done, time.monotonic() - began, f": {note}" if note else "")
    memory = used_memory(engine.weights.device)
    return Dozed(number=doze.number, asleep=engine.dozing, memory=memory, note=note, error=error)


def _hear(message: ToWorker | Prepared, engine: Serving, lanes: Lanes, fan_out: FanOut) -> None:
    match message:
        case Submit():
            for number, request in fan_out.split(message.number, message.request):
                if refused := lanes.put(number, request):
                    engine.take(refused)
        case Doze():
            pass  # when the step is through
        case Abort():
            for number in fan_out.numbers(message.number):
                _abort(number, engine, lanes)
        case _:
            if lanes.arrive(message):
                engine.take(message)


def _abort(number: int, engine: Serving, lanes: Lanes) -> None:
    if ended := lanes.abort(number):
        engine.take(ended)
    else:
        engine.abort(number)

import sys

import pytest

from mesh.messages.inference import InferenceRequest
from node.backends.torch import TorchSettings
from node.liveness import Patience
from node.supervisor import RestartPolicy

FOR_EVER = Patience(least=1000, silence=1000, circles=1000, loading=1000)
# A worker without an engine: it speaks the worker's protocol, and the model name in its path tells it how to behave.
WORKER = r"""
import argparse, os, socket, sys, threading, time
import msgspec
from mesh.framing import FrameReader, frame
from mesh.messages.inference import Accepted, Delta, Done, Fail, Performance, Usage
from mesh.messages.worker import Abort, Alive, Doze, Dozed, EngineLoad, EngineStats, Loading, Ready, Refusal, Step, Submit
from mesh.messages.worker import ToWorker

parser = argparse.ArgumentParser()
for flag in ("--model", "--device", "--dtype"):
    parser.add_argument(flag)
for flag in ("--socket-fd", "--slots", "--context", "--cache-mib"):
    parser.add_argument(flag, type=int)
options = parser.parse_args()
behaviour = os.path.basename(options.model)
connection = socket.socket(fileno=options.socket_fd)
encoder, decoder, reader = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(list[ToWorker]), FrameReader()
log = open(os.path.join(os.path.dirname(options.model), "log"), "a", buffering=1)

turn = threading.Lock()
def send(*messages):
    with turn:
        connection.sendall(frame(encoder.encode(messages)))

steps = 0
def step(*events):
    global steps
    steps += 1
    send(Step(EngineLoad(steps, len(running), 0, options.slots or 4, 100.0, 10.0), list(events)))

running = {}
log.write(f"start {os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
send(Loading(0, 2, "weights"), Loading(2, 2, "weights"))
if behaviour == "refuse":
    send(Refusal("it has no tokenizer; add tokenizer.json"))
    sys.exit(2)
if behaviour == "crash":
    print("RuntimeError: cannot load", file=sys.stderr)
    sys.exit(1)
if behaviour == "garbage":
    connection.sendall(frame(b"\xc1\xc1"))
    time.sleep(100)
if behaviour == "slow":
    time.sleep(100)
send(Ready(context_length=options.context or 128, vocabulary=64, parameters=1000, slots=options.slots or 4, device="cpu",
    device_name="test", device_memory=1, dtype="float32", weights_digest="digest", numerics="numerics", architecture="None"))
if behaviour == "wedged":
    send(Alive(step=7, running=1, waiting=0, busy_seconds=4.5, stats=EngineStats(total_requests=3)))
def speak():
    while True:
        send(Alive(step=steps, running=len(running), waiting=0, busy_seconds=1.0 if running else 0.0, stats=EngineStats()))
        time.sleep(0.2)
if behaviour == "speaks":
    threading.Thread(target=speak, daemon=True).start()
if behaviour == "deaf":
    time.sleep(100)

def answer(submit):
    number, request = submit.number, submit.request
    running[number] = request
    prompt = request.prompt or ""
    log.write(f"submit {number}\n")
    if prompt == "fail":
        del running[number]
        step((number, Fail("BadRequest", "the prompt is bad", "bad_prompt", 400, param="prompt")))
    elif prompt == "die":
        os._exit(1)
    elif prompt.startswith("hang"):
        step((number, Accepted(len(running), 0)), (number, Delta(0, [1], "one")))
    else:
        del running[number]
        step((number, Accepted(1, 0)), (number, Delta(0, [1], "one")))
        step((number, Delta(1, [2], " two")), (number, Done("stop", Usage(3, 2), Performance(1, 1, 0, 2, 1))))

while data := connection.recv(65536):
    for body in reader.feed(data):
        for message in decoder.decode(body):
            if isinstance(message, Submit):
                answer(message)
            elif isinstance(message, Doze):
                log.write(f"{'sleep' if message.asleep else 'wake'}\n")
                if behaviour == "dies-asleep" and message.asleep:
                    send(Dozed(number=message.number, asleep=True, note="given back"))
                    os._exit(1)
                if behaviour == "dies-falling-asleep" or (behaviour == "dies-waking" and not message.asleep):
                    os._exit(1)
                if behaviour == "stays-asleep" and not message.asleep:
                    send(Dozed(number=message.number, asleep=True, error="OutOfMemoryError: no room"))
                elif behaviour == "stays-awake":
                    send(Dozed(number=message.number, asleep=False, error="MemoryError: no room in the host's memory"))
                elif behaviour != "ignores":
                    send(Dozed(number=message.number, asleep=message.asleep, memory=77, note="given back" * message.asleep))
            else:
                log.write(f"abort {message.number}\n")
                if running.pop(message.number, None):
                    step((message.number, Delta(1, [9], "late")), (message.number, Fail("MeshError", "x", "cancelled", 499)))
log.write("end of file\n")
os._exit(0)
"""


@pytest.fixture
def worker_settings(tmp_path):
    """Settings of a model whose worker is the script above and whose directory's name is its behaviour."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)

    def make(behaviour: str = "well", **options) -> TorchSettings:
        defaults = {"program": [sys.executable, str(script)], "restarts": RestartPolicy(delay=0.1), "patience": FOR_EVER}
        return TorchSettings(**{"model": "m", "path": tmp_path / behaviour, **defaults, **options})

    return make


@pytest.fixture
def worker_log(tmp_path):
    """What the worker wrote down, line by line."""

    def read() -> list[str]:
        path = tmp_path / "log"
        return path.read_text().splitlines() if path.exists() else []

    return read


@pytest.fixture
def ask():
    """A request for a completion."""

    def make(prompt: str = "hello there", **fields) -> InferenceRequest:
        return InferenceRequest(**{"request_id": f"r-{prompt}", "model": "m", "task": "completion", "prompt": prompt, **fields})

    return make

"""A program that speaks OpenAI's API, without imports that take long: `python openai_program.py PORT [HOW]...`.

HOW: `crash` ends at once, `mute` never answers, `deaf` ignores SIGTERM, `late` lists no model for a while, `unlisted` lists none
ever, `single` does one thing at a time and takes 2 s for an answer, `stuck` answers its list but no request after the first,
`sleepy` knows /sleep and /wake_up, `touchy` is `single` in threads, and drops the answer when it is asked for its list, `counts`
says 30 words, slowly, or those of them that are not in the message of the assistant that it is told to go on with.
"""

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer

port, how = int(sys.argv[1]), sys.argv[2:]
began = time.monotonic()
asked = 0
asleep = False
touched = 0


def words_behind(request):
    last = request["messages"][-1]
    goes_on = last["role"] == "assistant" and request.get("continue_final_message") and not request["add_generation_prompt"]
    said = len(last["content"].split()) if goes_on else 0
    chunks = [{"choices": [{"delta": {"content": f"word-{number} "}}]} for number in range(said, 30)]
    usage = {"prompt_tokens": 3 + said, "completion_tokens": 30 - said}
    return [*chunks, {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": usage}]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        global touched
        touched += 1
        if "mute" in how:
            time.sleep(1000)
        early = "late" in how and time.monotonic() < began + 0.3
        listed = [] if early or "unlisted" in how else [{"id": "far", "max_model_len": 64}]
        self.answer(json.dumps({"data": listed}).encode())

    def do_POST(self):
        global asked, asleep
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.path in ("/sleep?level=1", "/wake_up"):
            asleep = self.path != "/wake_up"
            print("asleep" if asleep else "awake", flush=True)
            self.answer(b"")
            return
        asked += 1
        if ("stuck" in how and asked > 1) or asleep:
            time.sleep(1000)
        request = json.loads(body)
        said = [os.environ.get("SAYS", f"pid {os.getpid()}"), " ", request["model"]]
        chunks = [{"choices": [{"delta": {"content": text}}]} for text in said]
        chunks += [{"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3, "completion_tokens": 3}}]
        if "counts" in how:
            self.trickle(words_behind(request), pause=0.1)
            return
        if "single" in how or "touchy" in how:
            self.trickle(chunks)
            return
        data = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        self.answer(data.encode(), "text/event-stream")

    def trickle(self, chunks, pause=0.5):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        before = touched
        for chunk in chunks:
            if "touchy" in how and touched > before:
                return
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            time.sleep(pause)

    def answer(self, body, kind="application/json"):
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


if "crash" in how:
    sys.exit("RuntimeError: this one crashes")
if "deaf" in how:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if {"single", "touchy", "counts"}.intersection(how):
    Handler.protocol_version = "HTTP/1.0"
ThreadingHTTPServer.daemon_threads = True
Server = HTTPServer if "single" in how else ThreadingHTTPServer
Server(("127.0.0.1", port), Handler).serve_forever()

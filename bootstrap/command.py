"""`mesh`: the operator's command and its verbs.

Exit codes: 0 well, 1 it did not work (one line on stderr says why and what to do), 2 the command line is wrong, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec
import trio

from bootstrap import report
from bootstrap.chat import STOPPED, chat
from bootstrap.doctor import DoctorSettings, Finding, examine
from bootstrap.engine_bench import BenchSettings, bench_engine
from bootstrap.keys_verb import add_kinds
from bootstrap.network_key import chosen_state_dir, invite, rotate
from bootstrap.remote import DEFAULT_GATEWAY, Gateway, gateway_url
from bootstrap.tables import show
from bootstrap.up import UpSettings, up
from mesh.errors import MeshError, Misconfigured
from mesh.installation import check_installation
from mesh.invite import EXPIRES
from mesh.logs import parse_levels
from mesh.version import __version__
from node.models import demo_model_path

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

GATEWAY_VARIABLE = "INFERMESH_GATEWAY"
_LONGEST_INVITE = 366 * 86400
_LARGEST_COUNT = 1_000_000


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point. Returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A model may write what the terminal's encoding lacks.
        with suppress(AttributeError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a TextIOWrapper, unless replaced
    try:
        check_installation()
        arguments = _parser().parse_args(argv)
        code = int(arguments.act(arguments))
        sys.stdout.flush()
    except MeshError as error:
        print(f"mesh: {error.message}", file=sys.stderr)
        return 2 if isinstance(error, Misconfigured) else 1
    except KeyboardInterrupt:
        return STOPPED
    except BrokenPipeError:
        # The reader has seen enough. Python would complain about it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Misconfigured(f"{message}; see {self.prog} --help")


if TYPE_CHECKING:
    _Verbs = argparse._SubParsersAction[_Parser]


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="mesh", description="A peer-to-peer inference mesh: start one, look at it, talk to it.")
    parser.add_argument("--version", action="version", version=f"mesh {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=_Parser)
    _add_up(verbs)
    for name, read, text in (
        ("status", report.status, "how a gateway and the mesh behind it do"),
        ("models", report.models, "the models of the mesh"),
        ("peers", report.peers, "every peer that a gateway knows"),
    ):
        verb = _add(verbs, name, text)
        _add_gateway(verb)
        _add_json(verb)
        verb.set_defaults(act=partial(_read, read))
    _add_chat(verbs)
    _add_route(verbs)
    _add_doctor(verbs)
    _add_network_key(verbs)
    _add_keys(verbs)
    _add_bench(verbs)
    return parser


def _add(verbs: _Verbs, name: str, text: str) -> argparse.ArgumentParser:
    return verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)


def _add_gateway(verb: argparse.ArgumentParser) -> None:
    help_text = f"the gateway to ask (env: {GATEWAY_VARIABLE}; default: {DEFAULT_GATEWAY})"
    verb.add_argument("--gateway", metavar="URL", help=help_text)


def _add_json(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--json", action="store_true", help="print JSON")


def _add_up(verbs: _Verbs) -> None:
    verb = _add(verbs, "up", "start a local mesh with the demo model: a bootstrap peer, a node and a gateway on loopback")
    verb.add_argument(
        "--port", type=_port, default=8000, metavar="PORT", help="the gateway's port; 0 is a free one (default: 8000)"
    )
    verb.add_argument("--state-dir", type=Path, metavar="DIR", help="keep keys and logs there (default: keep nothing)")
    verb.add_argument(
        "--drain-timeout", type=_seconds, default=30.0, metavar="SECONDS", help="for requests in flight (default: 30)"
    )
    verb.add_argument("--log-level", type=_levels, default="info", metavar="LEVEL", help="of the three logs (default: info)")
    verb.set_defaults(act=_up)


def _add_chat(verbs: _Verbs) -> None:
    verb = _add(verbs, "chat", "talk to a model; with a prompt, or text piped in, answer it and end")
    verb.add_argument("prompt", nargs="*", metavar="PROMPT", help="the question; without it a conversation begins")
    verb.add_argument("--model", metavar="MODEL", help="the model's name (default: the first of `mesh models`)")
    _add_gateway(verb)
    verb.set_defaults(act=_chat)


def _add_route(verbs: _Verbs) -> None:
    verb = _add(verbs, "route", "which node the next request for a model would go to, and why")
    verb.add_argument("model", metavar="MODEL")
    _add_gateway(verb)
    _add_json(verb)
    verb.set_defaults(act=_route)


def _add_doctor(verbs: _Verbs) -> None:
    verb = _add(verbs, "doctor", "check what usually goes wrong, and say what to do")
    verb.add_argument(
        "--bootstrap",
        action="append",
        metavar="ADDR|INVITE",
        help="try to reach this peer, or to get in with this invite; may be repeated",
    )
    verb.add_argument("--mesh", metavar="NAME", help="look into this mesh: who is there, or why nobody is found")
    verb.add_argument("--model", action="append", default=[], type=_pair, metavar="ID=PATH", help="look at this model directory")
    verb.add_argument("--device", default="auto", metavar="DEVICE", help="auto, cpu or cuda:N (default: auto)")
    _add_gateway(verb)
    _add_json(verb)
    verb.set_defaults(act=_doctor)


def _add_network_key(verbs: _Verbs) -> None:
    verb = _add(verbs, "invite", "print a token that lets a peer into the private mesh: pass it as --bootstrap, keep it secret")
    verb.add_argument("--expires", type=_duration, default=EXPIRES, metavar="TIME", help="such as 30m, 24h or 7d (default: 24h)")
    _add_state_dir(verb)
    verb.set_defaults(act=_invite)
    verb = _add(verbs, "rotate-key", "replace the key of the private mesh; members are told, the old one stays valid for 24 h")
    _add_state_dir(verb)
    verb.set_defaults(act=_rotate)


def _add_keys(verbs: _Verbs) -> None:
    verb = _add(verbs, "keys", "make, list and revoke the API keys in a file for --api-keys")
    add_kinds(verb.add_subparsers(dest="kind", required=True, metavar="WHAT", parser_class=_Parser))


def _add_bench(verbs: _Verbs) -> None:
    verb = _add(verbs, "bench", "measure how fast models run on this machine")
    kinds = verb.add_subparsers(dest="kind", required=True, metavar="WHAT", parser_class=_Parser)
    engine = kinds.add_parser("engine", help="a model in a worker process, as a node runs it", allow_abbrev=False)
    engine.add_argument("model", type=Path, nargs="?", metavar="PATH", help="a model directory (default: the demo model)")
    engine.add_argument("--device", default="auto", metavar="DEVICE", help="auto, cpu or cuda:N (default: auto)")
    engine.add_argument("--dtype", default="auto", metavar="TYPE", help="auto, float32, bfloat16 or float16 (default: auto)")
    engine.add_argument("--weights", default="auto", metavar="KIND", help="auto or int8 (default: auto)")
    engine.add_argument("--threads", type=_count, metavar="N", help="on a CPU (default: as many as are found best)")
    engine.add_argument(
        "--requests", type=_count, nargs="+", default=[1, 8, 32], metavar="N", help="so many at once (default: 1 8 32)"
    )
    engine.add_argument("--prompt", type=_count, default=64, metavar="TOKENS", help="of each prompt (default: 64)")
    engine.add_argument("--tokens", type=_count, default=64, metavar="TOKENS", help="of each answer (default: 64)")
    engine.add_argument("--rounds", type=_count, default=3, metavar="N", help="the figures are medians of them (default: 3)")
    engine.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    engine.add_argument("--svg", type=Path, metavar="FILE", help="draw the figures there")
    engine.set_defaults(act=_bench_engine)


def _add_state_dir(verb: argparse.ArgumentParser) -> None:
    help_text = "of a member on this machine (env: INFERMESH_STATE_DIR; default: that of mesh-bootstrap)"
    verb.add_argument("--state-dir", type=Path, metavar="DIR", help=help_text)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return int(text)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= _LARGEST_COUNT):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {_LARGEST_COUNT}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def _duration(text: str) -> float:
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:], 0)
    seconds = _seconds(text[:-1]) * unit if unit else _seconds(text)
    if not 0 < seconds <= _LONGEST_INVITE:
        raise argparse.ArgumentTypeError(f"{text!r} is not between a second and a year; write 30m, 24h or 7d")
    return seconds


def _levels(text: str) -> str:
    try:
        parse_levels(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _pair(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not (name and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not ID=PATH")
    return name, Path(path).expanduser()


def _chosen_gateway(arguments: argparse.Namespace) -> str:
    return arguments.gateway or os.environ.get(GATEWAY_VARIABLE) or DEFAULT_GATEWAY


def _up(arguments: argparse.Namespace) -> int:
    return up(
        UpSettings(
            port=arguments.port,
            state_dir=arguments.state_dir,
            drain_timeout=arguments.drain_timeout,
            log_level=arguments.log_level,
        )
    )


def _read(read: Callable[..., Awaitable[None]], arguments: argparse.Namespace) -> int:
    trio.run(partial(read, Gateway(_chosen_gateway(arguments)), as_json=arguments.json))
    return 0


def _route(arguments: argparse.Namespace) -> int:
    trio.run(partial(report.route, Gateway(_chosen_gateway(arguments)), arguments.model, as_json=arguments.json))
    return 0


def _chat(arguments: argparse.Namespace) -> int:
    prompt = " ".join(arguments.prompt) if arguments.prompt else None
    return chat(Gateway(_chosen_gateway(arguments)), arguments.model, prompt)


def _invite(arguments: argparse.Namespace) -> int:
    print(invite(chosen_state_dir(arguments.state_dir), arguments.expires))
    return 0


def _rotate(arguments: argparse.Namespace) -> int:
    print(rotate(chosen_state_dir(arguments.state_dir)))
    return 0


def _bench_engine(arguments: argparse.Namespace) -> int:
    bench_engine(
        BenchSettings(
            model=(arguments.model or demo_model_path()).expanduser(),
            device=arguments.device,
            dtype=arguments.dtype,
            weights=arguments.weights,
            threads=arguments.threads,
            requests=tuple(dict.fromkeys(arguments.requests)),
            prompt=arguments.prompt,
            tokens=arguments.tokens,
            rounds=arguments.rounds,
            json=arguments.json,
            svg=arguments.svg,
        )
    )
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from_environment = [item.strip() for item in os.environ.get("INFERMESH_BOOTSTRAP", "").split(",") if item.strip()]
    settings = DoctorSettings(
        gateway=gateway_url(_chosen_gateway(arguments)),
        gateway_named=_chosen_gateway(arguments) != DEFAULT_GATEWAY,
        bootstrap=arguments.bootstrap or from_environment,
        mesh=arguments.mesh,
        models=dict(arguments.model),
        device=arguments.device,
    )
    findings = trio.run(examine, settings)
    _show_findings(findings, as_json=arguments.json)
    return 1 if any(finding.result == "fail" for finding in findings) else 0


def _show_findings(findings: list[Finding], *, as_json: bool) -> None:
    if as_json:
        print(msgspec.json.format(msgspec.json.encode({"checks": findings})).decode())
        return
    rows = [(finding.result, finding.check, finding.message, finding.advice) for finding in findings]
    show(("", "check", "found", "what to do"), rows)

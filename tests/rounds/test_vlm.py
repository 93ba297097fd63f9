"""A yes-or-no question to a vision-language model, against a server of our own."""

import base64
import io
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dfusion.errors import UserError
from dfusion.rewards import vlm
from dfusion.rewards.registry import load_reward, reward_name
from dfusion.rewards.vlm import YesNo
from dfusion.settings.schema import Eval

SECRET = "sk-very-secret"
Reply = tuple[int, bytes, dict[str, str]]


class Server(ThreadingHTTPServer):
    """Answers with what `replies` returns; keeps what it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: Callable[[dict[str, Any]], Reply] = lambda body: said("yes")
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []

    def handle_error(self, *_: Any) -> None:
        """A client that hung up is no error here."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body | {"path": self.path})
        self.server.headers.append(dict(self.headers))
        code, text, headers = self.server.replies(body)
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""


def said(text: str, tokens: dict[str, float] | None = None) -> Reply:
    """A chat completion; tokens: probabilities of its first token."""
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
    if tokens:
        top = [{"token": token, "logprob": math.log(p)} for token, p in tokens.items()]
        choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
    return 200, json.dumps({"choices": [choice]}).encode(), {}


def failed(code: int, text: str = "{}", **headers: str) -> Reply:
    return code, text.encode(), headers


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("VLM_API_KEY", SECRET)
    monkeypatch.setenv("no_proxy", "*")
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.02,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(server: Server, count: int = 1, **how: float) -> list[float]:
    images = [Image.fromarray(np.full((4, 4, 3), 50 * n, np.uint8)) for n in range(count)]
    reward = YesNo(server.address, "some-model", "Is it {prompt}?", **{"pause": 0.01, **how})
    return reward(images, [f"a cat {n}" for n in range(count)])


def test_each_image_is_sent_with_its_prompt_and_the_key(server: Server) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        picture, question = body["messages"][0]["content"]
        data = picture["image_url"]["url"].removeprefix("data:image/png;base64,")
        level = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))[0, 0, 0]
        return said("Yes." if question["text"] == f"Is it a cat {level // 50}?" else "no")

    server.replies = reply
    assert ask(server, 3) == [1, 1, 1]
    assert {body["path"] for body in server.bodies} == {"/v1/chat/completions"}
    assert {body["model"] for body in server.bodies} == {"some-model"}
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {SECRET}"}


def test_the_score_is_the_probability_of_yes_against_no(server: Server) -> None:
    tokens = {"Yes": 0.5, " yes": 0.1, "No": 0.2, "The": 0.1}
    server.replies = lambda body: said("Yes", tokens)
    assert ask(server) == [pytest.approx(0.75)]
    server.replies = lambda body: said("No, it is not", {"It": 1.0})
    assert ask(server) == [0]
    server.replies = lambda body: said("**Yes**")
    assert ask(server) == [1]


def test_a_server_without_log_probabilities_is_asked_without(server: Server) -> None:
    server.replies = lambda body: failed(400) if "logprobs" in body else said("No.")
    assert ask(server) == [0]
    assert ["logprobs" in body for body in server.bodies] == [True, False]


def in_turn(server: Server, *replies: Reply) -> None:
    left = [*replies]
    server.replies = lambda body: left.pop(0) if len(left) > 1 else left[0]


@pytest.mark.parametrize(
    "bad",
    [
        *(failed(500), failed(503, "<html>"), failed(429, "{}", **{"Retry-After": "0"})),
        *((200, b"{\"choices\": [", {}), (200, b"\xff\xfe", {}), (200, b"[]", {})),
        (200, b'{"choices": []}', {}),
    ],
)  # fmt: skip
def test_what_may_pass_is_tried_again(server: Server, bad: Reply) -> None:
    in_turn(server, bad, bad, said("yes"))
    assert ask(server) == [1] and len(server.bodies) == 3


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (failed(500), "answered 500 Internal Server Error, 5 times"),
        ((200, b"rubbish", {}), "the answer is not JSON, 5 times"),
        ((200, b'{"error": "x"}', {}), "the answer is not a chat completion, 5 times"),
    ],
)
def test_what_does_not_pass_is_told_in_one_line(server: Server, bad: Reply, message: str) -> None:
    in_turn(server, bad)
    with pytest.raises(UserError, match=message) as caught:
        ask(server)
    assert server.address in str(caught.value) and len(server.bodies) == 5


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            failed(401, f'{{"error": "bad key {SECRET}"}}'),
            "401 .*bad key ….*set VLM_API_KEY",
        ),
        (failed(404), "answered 404 .*check --config.eval.vlm_address"),
        (failed(302, "", Location="http://127.0.0.1:9/"), "answered 302"),
        (said("Maybe"), "vlm_question: the model answered 'Maybe', neither yes nor no"),
    ],
)
def test_what_no_attempt_can_mend_is_tried_once(
    server: Server, bad: Reply, message: str, caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    in_turn(server, bad)
    with pytest.raises(UserError, match=message) as caught:
        ask(server)
    assert len(server.bodies) == 1
    assert SECRET not in str(caught.value) + caplog.text + "".join(capfd.readouterr())


def test_a_bad_request_is_named_after_it_was_simplified(server: Server) -> None:
    in_turn(server, failed(400, '{"error": "no such model"}'))
    with pytest.raises(UserError, match="answered 400 .*no such model.*vlm_model 'some-model'"):
        ask(server)
    assert len(server.bodies) == 2


def test_a_silent_server_is_given_up_in_time(server: Server) -> None:
    woken = threading.Event()

    def reply(body: dict[str, Any]) -> Reply:
        if len(server.bodies) == 1:
            woken.wait(5)
        return said("yes")

    server.replies = reply
    began = time.monotonic()
    assert ask(server, timeout=0.3) == [1]
    assert 0.3 < time.monotonic() - began < 3 and len(server.bodies) == 2
    woken.set()


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    reward = YesNo("http://127.0.0.1:9/v1", "m", "{prompt}?", pause=0.01)
    with pytest.raises(UserError, match="127.0.0.1:9/v1.*cannot be reached .*5 times"):
        reward([Image.new("RGB", (2, 2))], ["x"])


def test_pauses_grow_and_the_servers_wish_counts(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(vlm.time, "sleep", pauses.append)
    in_turn(
        server, failed(500), failed(500), failed(429, "{}", **{"Retry-After": "30"}), failed(500)
    )
    with pytest.raises(UserError, match="500"):
        ask(server, pause=1.0)
    assert pauses == [1, 2, 30, 8]


def test_its_name_says_what_was_asked_of_whom(server: Server) -> None:
    settings = Eval(
        reward="vlm", vlm_address=server.address, vlm_model="m", vlm_question="{prompt}?"
    )
    assert reward_name(settings) == "vlm:m:{prompt}?"
    assert load_reward(settings, torch.device("cpu"))([Image.new("RGB", (2, 2))], ["x"]) == [1]
    for missing in ("vlm_address", "vlm_model"):
        setattr(settings, missing, "")
        with pytest.raises(UserError, match=f"--config.eval.{missing}"):
            load_reward(settings, torch.device("cpu"))
        setattr(settings, missing, "example")

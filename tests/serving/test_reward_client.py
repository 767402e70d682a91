"""The client of reward servers: it waits, tries again what may pass, and then says what failed."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from typing import Any

import pytest
from support.hostile import acting, time_limit
from support.reward_servers import INFO, Handler, free_port, good_reply, reward_of, scripted

from agents.config import TrainConfig
from tokenenv.addresses import TOKEN_VARIABLE, parse_address
from tokenenv.remote import RewardClient, RewardServerError
from tokenenv.remote import client as client_module
from tokenenv.settings import EnvSettings


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """Between tries: a test has no time."""
    monkeypatch.setattr(client_module, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(client_module, "LONGEST_PAUSE", 0.02)
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)


def items(count: int) -> list[dict[str, Any]]:
    return [{"prompt": "p", "response": f"r{i}", "stopped": True} for i in range(count)]


def client_of(url: str, settings: str = "timeout=0.3&patience=2") -> RewardClient:
    return RewardClient(parse_address(f"{url}#{settings}"))


def html(handler: Handler, request: Any) -> None:
    handler.say(200, b"<html><body>\x1b[31mDown for maintenance</body></html>")


def status(number: int, body: bytes = b"", **headers: str) -> Any:
    return lambda handler, request: handler.say(number, body, **headers)


def cut(handler: Handler, request: Any) -> None:
    """The head of a reply and half of its body."""
    reply = good_reply(request)
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(reply)))
    handler.end_headers()
    handler.wfile.write(reply[: len(reply) // 2])
    handler.break_off()


def cut_without_length(handler: Handler, request: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(good_reply(request)[:-3])
    handler.break_off()


def drip(handler: Handler, request: Any) -> None:
    """A byte now and then, for ever: each comes in time, all of them never."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    while True:
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def changed(**values: Any) -> Any:
    """A reply with other values; `rewards` may be a function of those in order."""

    def answer(handler: Handler, request: Any) -> None:
        content = json.loads(good_reply(request))
        for name, value in values.items():
            content[name] = value(content[name]) if callable(value) else value
        handler.say(200, json.dumps(content).encode())

    return answer


PASSING = {
    "status 500": status(500, b"Traceback: oh"),
    "status 502": status(502, b"<html>Bad gateway</html>"),
    "status 503": status(503, Retry_After="0"),
    "status 429": status(429, b'{"error": "slowly"}', Retry_After="1"),
    "429 by date": status(429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
    "closed at once": lambda handler, request: handler.break_off(),
    "closed half-way": cut,
    "closed half-way, no length": cut_without_length,
    "slow": lambda handler, request: time.sleep(0.6),
    "drips": drip,
    "HTML": html,
    "NaN": changed(rewards=lambda rewards: [float("nan"), *rewards[1:]]),
    "too few": changed(rewards=lambda rewards: rewards[1:]),
    "too many": changed(rewards=lambda rewards: [*rewards, 0.0]),
    "no numbers": changed(rewards=lambda rewards: ["1.0", *rewards[1:]]),
    "True": changed(rewards=lambda rewards: [True, *rewards[1:]]),
    "another id": changed(request_id="of another request"),
    "huge": status(200, b" " * 2**21),
    "no HTTP": lambda handler, request: handler.wfile.write(b"SSH-2.0-OpenSSH_9.9\r\n\r\n"),
}
"""What a server may do now and then, and be in order afterwards."""


@pytest.mark.parametrize("name", PASSING)
def test_a_fault_that_passes_is_waited_out_with_one_id(name):
    """Twice in a row, for the second of three requests; the others go through meanwhile."""
    asked: Counter[str] = Counter()

    def answer(handler: Handler, request: Any) -> None:
        if request is not None:
            asked[request["request_id"]] += 1
            if request["items"][0]["response"] == "r8" and asked[request["request_id"]] <= 2:
                PASSING[name](handler, request)
                return
        handler.say(200, good_reply(request))

    with scripted(answer) as url, time_limit(60):
        started = time.monotonic()
        rewards = client_of(url, "timeout=0.3&patience=20").scores(items(20))
    assert rewards == [reward_of(item) for item in items(20)], "in their order"
    assert sorted(asked.values()) == [1, 1, 3], "a request keeps its id over its tries"
    if name == "status 429":
        assert time.monotonic() - started >= 2, "Retry-After is kept to"


LASTING = {
    "status 400": (status(400, b'{"error": "no \\u001b[31m colours"}'), r"no \\x1b\[31m colours"),
    "status 401": (status(401), TOKEN_VARIABLE),
    "status 403": (status(403, b"Forbidden"), "Forbidden"),
    "status 404": (status(404, b"<h1>Nothing here</h1>"), "is it a reward server"),
    "status 413": (status(413), "status 413"),
    "status 422": (status(422, b'{"detail": [{"msg": "no prompt"}]}'), "no prompt"),
    "redirect": (status(307, Location="http://elsewhere/\x1b[0m"), "sends elsewhere"),
    "another model": (changed(fingerprint="another"), "another model"),
}
"""What no waiting changes; and what is said of it."""


@pytest.mark.parametrize("name", LASTING)
def test_a_fault_that_lasts_ends_the_request_at_once(name):
    answers, said = LASTING[name]
    asked = []

    def answer(handler: Handler, request: Any) -> None:
        if request is None:
            handler.say(200, good_reply(None))
            return
        asked.append(request)
        answers(handler, request)

    with scripted(answer) as url, time_limit(60), pytest.raises(RewardServerError) as raised:
        client_of(url, "patience=60").scores(items(3))
    assert len(asked) == 1
    assert url in str(raised.value) and not acting(str(raised.value))
    assert raised.match(said)


@pytest.mark.parametrize("name", [*PASSING, "silent"])
def test_what_does_not_pass_is_given_up_with_the_reason(name):
    """After the patience, or three replies of nonsense in a row; no reward is made up."""

    def answer(handler: Handler, request: Any) -> None:
        if request is None:
            handler.say(200, good_reply(None))
        else:
            PASSING.get(name, PASSING["slow"])(handler, request)

    with scripted(answer) as url, time_limit(60), pytest.raises(RewardServerError) as raised:
        client_of(url, "timeout=0.1&patience=0.3").scores(items(20))
    said = str(raised.value)
    assert url in said and "asked" in said and not acting(said) and len(said) < 900


OTHER_INFOS = {
    "another schema": ({"schema": "tokenrlhf-reward/2"}, "tokenrlhf-reward/1"),
    "no batch": ({"max_batch": 0}, "'max_batch' is 0"),
    "batch of text": ({"max_batch": "64"}, "'max_batch'"),
    "no fingerprint": ({"fingerprint": None}, "'fingerprint'"),
    "half a normalisation": ({"reward_std": None}, "'reward_mean' and 'reward_std'"),
    "no deviation": ({"reward_std": 0}, "'reward_mean' and 'reward_std'"),
    "columns": ({"columns": "answer"}, "'columns'"),
    "kind": ({"kind": "oracle"}, "'kind'"),
    "vocabulary": ({"vocabulary": "x", "vocabulary_size": None}, "'vocabulary_size'"),
}


@pytest.mark.parametrize("name", OTHER_INFOS)
def test_a_server_that_speaks_otherwise_is_refused_by_what_differs(name):
    values, said = OTHER_INFOS[name]
    with (
        scripted(changed(**values)) as url,
        pytest.raises(RewardServerError, match=said),
    ):
        assert client_of(url).info


def test_an_address_without_a_server_says_so_soon():
    started = time.monotonic()
    with pytest.raises(RewardServerError, match=r"nothing listens there.*tokenrlhf serve-reward"):
        assert client_of(f"http://127.0.0.1:{free_port()}", "patience=0.2").info
    assert time.monotonic() - started < 3


def test_a_server_that_starts_late_is_waited_for():
    port = free_port()
    client = client_of(f"http://127.0.0.1:{port}", "patience=20")
    found: list[Any] = []
    asking = threading.Thread(target=lambda: found.append(client.info))
    asking.start()
    time.sleep(0.2)
    with scripted(lambda handler, request: handler.say(200, good_reply(request)), port):
        asking.join(20)
    assert found == [INFO]


def test_few_requests_are_under_way_at_a_time_and_a_failure_ends_all_of_them():
    now, most, lock = 0, 0, threading.Lock()

    def answer(handler: Handler, request: Any) -> None:
        nonlocal now, most
        if request is None:
            handler.say(200, good_reply(None))
            return
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.05 if request["items"][0]["response"] != "r160" else 0.0)
        with lock:
            now -= 1
        if request["items"][0]["response"] == "r160":
            handler.say(400, b"")
        else:
            handler.say(200, good_reply(request))

    with scripted(answer) as url, time_limit(60):
        client = client_of(url, "timeout=30&patience=60")
        assert len(client.scores(items(100))) == 100
        assert most == client_module.REQUESTS
        with pytest.raises(RewardServerError, match="status 400"):
            client.scores(items(320))
        left = [thread.name for thread in threading.enumerate()]
        assert not any(name.startswith("reward-server") for name in left), left


def test_the_token_is_sent_and_never_shown(monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, "s3cret-token")
    given = []

    def answer(handler: Handler, request: Any) -> None:
        given.append(handler.headers["Authorization"])
        handler.say(401, b"no")

    with scripted(answer) as url, pytest.raises(RewardServerError) as raised:
        assert client_of(url).info
    assert given == ["Bearer s3cret-token"]
    assert "s3cret" not in str(raised.value)
    monkeypatch.setenv(TOKEN_VARIABLE, "two\r\nX-Evil: 1")
    with pytest.raises(ValueError, match=f"{TOKEN_VARIABLE} holds") as raised:
        client_of("http://127.0.0.1:1")
    assert "Evil" not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        *("http://", "http://:80", "http://a:0", "http://a:99999", "http://a:b", "http://[::1"),
        *("http://a b", "http://a\n", "http://ä", "http://a/\x1b[31m", "http://-a", "http://[x]"),
        *("http://me:pw@a:1", "http://pw@a", "http://a?key=pw", "http://a:1/x?pw#timeout=1"),
        *("http://a#timeout=0", "http://a#patience=nan", "http://a#timeout=1&timeout=2"),
        *("http://a#key=pw", "http://a#pw", "http://a#timeout=pw", "http://a#timeout=1e9"),
    ],
)
@pytest.mark.parametrize("settings", [TrainConfig, EnvSettings])
def test_what_is_no_address_is_refused_and_shows_no_secret(text, settings):
    """Also among several, with what would be refused by a message that shows all of them."""
    several = {"reward_model": ["exact", text], "reward_weights": [1]}
    for values in ({"reward_model": text}, several):
        if settings is TrainConfig and "reward_weights" in values:
            values = {name: tuple(value) for name, value in values.items()}
        with pytest.raises(ValueError, match="reward_model") as raised:
            settings(**values)
        assert "pw" not in str(raised.value) and not acting(str(raised.value))


def test_addresses_say_what_they_mean():
    address = parse_address("HTTPS://Scores.example:8443/v1/#timeout=5&patience=60")
    assert str(address) == "https://scores.example:8443/v1"
    assert (address.timeout, address.patience) == (5.0, 60.0)
    assert str(parse_address("http://[::1]:80")) == "http://[::1]:80"
    assert parse_address("https://a").port == 443 and parse_address("http://a").port == 80


def test_a_signal_ends_the_waiting():
    """As Ctrl-C does: the exception comes out, and the connection does not hold it up."""
    import signal

    def answer(handler: Handler, request: Any) -> None:
        handler.say(200, good_reply(None)) if request is None else time.sleep(20)

    with scripted(answer) as url, time_limit(60):
        client = client_of(url, "timeout=20&patience=60")
        for count in (3, 30):  # alone, and several at a time
            assert client.info
            main = threading.main_thread().ident
            timer = threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGUSR1))
            before = signal.signal(signal.SIGUSR1, _interrupt)
            timer.start()
            started = time.monotonic()
            try:
                with pytest.raises(KeyboardInterrupt):
                    client.scores(items(count))
            finally:
                signal.signal(signal.SIGUSR1, before)
            assert time.monotonic() - started < 5


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_proxies_of_the_environment_are_not_used(monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with scripted(lambda handler, request: handler.say(200, good_reply(request))) as url:
        assert client_of(url).info == INFO


def test_a_port_that_accepts_and_says_nothing_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with time_limit(30), pytest.raises(RewardServerError, match=r"no reply within 0\.2 s"):
            assert client_of(url, "timeout=0.2&patience=0.3").info


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Any:
    """A certificate of its own authority for localhost, and its key."""
    import subprocess

    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost".split()
    command += ["-addext", "subjectAltName=DNS:localhost"]
    try:
        subprocess.run(
            [*command, "-keyout", "key.pem", "-out", "cert.pem"],
            cwd=folder,
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"openssl makes no certificate here: {error}")
    return folder


def test_https_is_spoken_with_certificates_that_are_known_and_no_others(certificate, monkeypatch):
    import ssl

    from tokenenv.remote import exchange

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    known = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
    answer = lambda handler, request: handler.say(200, good_reply(request))  # noqa: E731
    with scripted(answer, tls=context) as url, time_limit(60):
        url = url.replace("http://127.0.0.1", "https://localhost")
        with pytest.raises(RewardServerError, match=r"TLS fails .*asked once"):
            assert client_of(url).info
        monkeypatch.setattr(exchange, "_context", lambda: known)
        client = client_of(url)
        assert client.scores(items(20)) == [reward_of(item) for item in items(20)]
        with pytest.raises(RewardServerError, match="TLS fails"):
            assert client_of(url.replace("localhost", "127.0.0.1")).info

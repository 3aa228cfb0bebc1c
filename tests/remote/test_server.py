"""The server: what it answers, to whom, and what it refuses."""

import asyncio
import base64
import io
import signal
import subprocess
import sys
import threading
import time

import pytest
import requests
import torch
from PIL import Image

from genrl.remote import server, wire
from genrl.remote.client import RemoteReward
from genrl.reward import About, RewardError


def mean(images, prompts, metadata):
    return images.mean((1, 2, 3))


class Preference:
    about = About(kind="pairwise", bounds=(0.0, 1.0))

    def compare(self, first, second, prompts, metadata):
        return torch.sigmoid((first - second).mean((1, 2, 3)))


class Latent:
    about = About(kind="latent")

    def score_latents(self, x, sigma, prompts): ...


def test_health_and_info(serve):
    with serve(mean, name="brightness", max_bytes=1000) as url:
        assert requests.get(f"{url}/health", timeout=30).json() == {"status": "ok"}
        info = requests.get(f"{url}/info", timeout=30).json()
    assert (info["version"], info["name"], info["max_bytes"], info["about"]["kind"]) == (1, "brightness", 1000, "pointwise")


def test_json_for_other_languages(serve):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (51, 51, 51)).save(buffer, format="PNG")
    asked = {"prompts": ["grey"], "images": [base64.b64encode(buffer.getvalue()).decode()]}
    with serve(mean) as url:
        answer = requests.post(f"{url}/score", json=asked, timeout=30)
        assert answer.status_code == 200 and answer.json()["scores"] == pytest.approx([0.2])
        wrong = requests.post(f"{url}/score", json=asked | {"prompts": []}, timeout=30)
        assert wrong.status_code == 400 and "prompts must be texts" in wrong.json()["error"]


def test_what_is_not_a_request_gets_a_reason(serve):
    with serve(mean) as url:
        for data, kind, status, says in [
            (b"nonsense", wire.BINARY, 400, "the header should have"),
            (b"nonsense", wire.JSON, 400, "not JSON"),
            (b"nonsense", "text/html", 415, "content type must be"),
        ]:
            answer = requests.post(f"{url}/score", data=data, headers={"Content-Type": kind}, timeout=30)
            assert answer.status_code == status and says in answer.json()["error"]
        assert requests.get(f"{url}/score", timeout=30).status_code == 405
        assert "error" in requests.get(f"{url}/other", timeout=30).json()


def test_the_token_is_wanted_everywhere_but_for_health(serve, pictures):
    with serve(mean, token="secret") as url:
        assert requests.get(f"{url}/health", timeout=30).ok
        for given in ({}, {"Authorization": "Bearer other"}, {"Authorization": "Bearer secret2"}, {"Authorization": "secret"}):
            assert requests.get(f"{url}/info", headers=given, timeout=30).status_code == 401
            assert requests.post(f"{url}/score", headers=given, timeout=30).status_code == 401
        assert len(RemoteReward(url, token="secret")(pictures, ["a"] * 4, [{}] * 4)) == 4


def test_other_machines_need_a_token(monkeypatch):
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(RewardError, match=r"can be reached from other machines.*--token-env"):
            server.serve("jpeg_size", {}, host=host)
    monkeypatch.delenv("GENRL_NO_TOKEN", raising=False)
    with pytest.raises(RewardError, match=r"'GENRL_NO_TOKEN' should hold the token.*is not set"):
        server.serve("jpeg_size", {}, token_env="GENRL_NO_TOKEN")
    monkeypatch.setenv("GENRL_NO_TOKEN", "two words\n")
    with pytest.raises(RewardError, match="must be ASCII without spaces") as caught:
        server.serve("jpeg_size", {}, token_env="GENRL_NO_TOKEN")
    assert "two words" not in str(caught.value)


def test_serving_by_name_until_interrupted(pictures):
    code = "from genrl.remote.server import serve; serve('jpeg_size', {'grow': True}, port=0)"
    running = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert running.stdout
        words = running.stdout.readline()
        url = words.split(" answers at ")[1].split(";")[0]
        assert RemoteReward(url)(pictures, ["a"] * 4, [{}] * 4).min() > 0
        running.send_signal(signal.SIGINT)
        assert running.communicate(timeout=300) == ("", "") and running.returncode == 0
    finally:
        running.kill()


def test_an_address_in_use_is_said():
    with server.listen("127.0.0.1", 0) as taken, pytest.raises(RewardError, match=r"cannot listen at 127.0.0.1:\d+: .*in use"):
        server.serve("jpeg_size", {}, port=taken.getsockname()[1])


def test_a_latent_reward_is_refused():
    with pytest.raises(RewardError, match="scores noisy latents"):
        server.build_app(Latent(), "lrm")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_refused_while_it_comes(serve, chunked: bool):
    body = bytes(50 * 2**20)
    parts = (body[start : start + 2**20] for start in range(0, len(body), 2**20))
    with serve(mean, max_bytes=2**20) as url:
        answer = requests.post(f"{url}/score", data=parts if chunked else body, headers={"Content-Type": wire.BINARY}, timeout=30)
        assert answer.status_code == 413 and "larger than 1048576 bytes" in answer.json()["error"]
        assert requests.get(f"{url}/health", timeout=30).ok


def test_a_reward_that_raises_is_500_with_its_reason(serve, pictures, caplog):
    def broken(images, prompts, metadata):
        raise ZeroDivisionError("nothing\nto divide")

    with serve(broken) as url:
        answer = requests.post(f"{url}/score", data=request(pictures), headers={"Content-Type": wire.BINARY}, timeout=30)
    assert answer.status_code == 500
    assert answer.json() == {"error": "reward 'tested' raised ZeroDivisionError: nothing to divide"}
    assert "Traceback" in caplog.text  # for whoever runs the server


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        (lambda images: images.mean(), "must return 4 scores"),
        (lambda images: [1.0], "must return 4 scores"),
        (lambda images: "good", "must return 4 numbers"),
        (lambda images: torch.zeros(4, device="meta"), "meta"),
    ],
)
def test_scores_that_are_none_are_500_with_a_reason(serve, pictures, scores, says: str):
    with serve(lambda images, prompts, metadata: scores(images)) as url:
        answer = requests.post(f"{url}/score", data=request(pictures), headers={"Content-Type": wire.BINARY}, timeout=30)
    assert answer.status_code == 500 and says in answer.json()["error"]


def test_metadata_that_is_missing_is_said(serve, pictures):
    def reads(images, prompts, metadata):
        return [entry["count"] for entry in metadata]

    reads.about = About(metadata=("count",))
    with serve(reads) as url:
        answer = requests.post(f"{url}/score", data=request(pictures), headers={"Content-Type": wire.BINARY}, timeout=30)
        assert answer.status_code == 400 and "lacks 'count'" in answer.json()["error"]
        remote = RemoteReward(url)
        assert remote.about.metadata == ("count",)
        assert remote(pictures, list("abcd"), [{"count": n} for n in range(4)]).tolist() == [0, 1, 2, 3]


def test_preferences(serve, pictures):
    first, second = pictures.float().div(255).chunk(2)
    with serve(Preference()) as url:
        remote = RemoteReward(url)
        assert remote.about.kind == "pairwise"
        assert torch.equal(remote.compare(first, second, ["a"] * 2, [{}] * 2), Preference().compare(first, second, [], []))
        with pytest.raises(RewardError, match="is pairwise: POST /compare"):
            remote(first, ["a"] * 2, [{}] * 2)


def test_health_answers_while_a_reward_works_and_calls_follow_one_another(serve, pictures):
    inside, most, begun, go_on = [0], [0], threading.Event(), threading.Event()

    def slow(images, prompts, metadata):
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        begun.set()
        assert go_on.wait(60)
        time.sleep(0.05)
        inside[0] -= 1
        return [0.0] * len(images)

    with serve(slow) as url:
        clients = [RemoteReward(url) for _ in range(3)]
        threads = [threading.Thread(target=one, args=(pictures, ["a"] * 4, [{}] * 4)) for one in clients]
        [thread.start() for thread in threads]
        assert begun.wait(60) and requests.get(f"{url}/health", timeout=30).ok
        assert all(thread.is_alive() for thread in threads)
        go_on.set()
        [thread.join() for thread in threads]
    assert most == [1]


def test_a_body_that_stops_arriving_does_not_hold_a_place_for_ever(monkeypatch):
    monkeypatch.setattr(server, "BODY_TIMEOUT_S", 0.05)
    app, sent = server.build_app(mean), []

    async def receive():
        await asyncio.sleep(30)

    async def send(message):
        sent.append(message)

    headers = [(b"content-type", wire.BINARY.encode()), (b"content-length", b"100")]
    scope = {"type": "http", "method": "POST", "path": "/score", "headers": headers, "query_string": b"", "http_version": "1.1"}
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 408 and b"did not arrive" in sent[1]["body"]


def request(pictures: torch.Tensor) -> bytes:
    return wire.encode_request(wire.Request("score", pictures, ["a"] * len(pictures), [{}] * len(pictures)))

"""The client: the same scores as in process, and a defined end to every fault."""

import json
import logging
import math
import random
import threading
import time

import numpy as np
import pytest
import torch
import urllib3.connection

from genrl.remote.client import RemoteReward, Unreachable
from genrl.reward import About, RewardError, check_scores, load_reward

OURS = ["a"] * 4, [{}] * 4


def answer(scores: list, **more: object) -> tuple[int, bytes]:
    return 200, json.dumps({"version": 1, "scores": scores} | more).encode()


GOOD = answer([1, 2, 3, 4])


@pytest.mark.parametrize("encoding", ["raw", "png"])
@pytest.mark.parametrize("name", ["jpeg_size", "shapes_proxy"])
def test_scores_are_those_in_process_bit_by_bit(serve, name: str, encoding: str):
    pictures = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    reward, images = load_reward(name), pictures.float() / 255
    prompts = ["a red circle", "a blue square", "a green triangle", "two red circles"]
    here = check_scores(name, reward(images, prompts, [{}] * 4), 4)
    with serve(reward, name=name) as url:
        remote = load_reward("genrl.rewards.http:Http", url=url, encoding=encoding)
        assert torch.equal(remote(images, prompts, [{}] * 4), here)
        assert torch.equal(remote(pictures, prompts, [{}] * 4), here)
        assert remote.remote and remote.name == name


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (torch.tensor([0.1, 1, 2, 3], dtype=torch.float16), [0.0999755859375, 1, 2, 3]),
        (torch.tensor([0.1, 1, 2, 3], dtype=torch.bfloat16), [0.10009765625, 1, 2, 3]),
        (np.array([1, 2, 3, 4]), [1, 2, 3, 4]),
        (np.array([0.1, 2, 3, 4]), [float(np.float32(0.1)), 2, 3, 4]),
        ([1, 2, None, math.nan], [1, 2, math.nan, math.nan]),
        (torch.tensor([1.0, math.inf, -math.inf, 0]), [1, math.nan, math.nan, 0]),
        (([1, 2, 3, 4], {"info": 1}), [1, 2, 3, 4]),
    ],
)
def test_whatever_a_reward_may_return_arrives(serve, pictures, scores, expected: list[float], caplog):
    with serve(lambda images, prompts, metadata: scores) as url:
        assert RemoteReward(url)(pictures, *OURS).tolist() == pytest.approx(expected, abs=0, nan_ok=True)
    assert ("could not score" in caplog.text) == any(math.isnan(one) for one in expected)


def test_what_the_reward_says_of_itself_is_known_at_once(serve):
    class Reads:
        about = About("group", ("target",), differentiable=True, bounds=(-math.inf, 0.0), scale=26.0, license="MIT")

        def __call__(self, images, prompts, metadata): ...

    with serve(Reads()) as url:
        assert RemoteReward(url).about == About(
            "group", ("target",), differentiable=False, bounds=(-math.inf, 0.0), scale=26.0, license="MIT"
        )


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_trouble_that_passes_costs_nothing(scripted, swift, pictures, status: int):
    server = scripted((status, b"{}"), (status, b"{}"), GOOD)
    assert RemoteReward(server.url)(pictures, *OURS).tolist() == [1, 2, 3, 4]
    assert server.asked == 3 and len(set(server.bodies)) == 1


def test_trouble_that_stays_ends_in_its_reason(scripted, swift, pictures):
    server = scripted((500, b'{"error": "reward x raised KeyError: 3"}'))
    with pytest.raises(RewardError, match=r"/score answered 500: reward x raised KeyError: 3"):
        RemoteReward(server.url, retries=2)(pictures, *OURS)
    assert server.asked == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 301])
def test_a_refusal_is_not_repeated(scripted, pictures, status: int):
    server = scripted((status, b'{"error": "because"}'))
    with pytest.raises(RewardError, match=rf"{server.url}/score answered {status}: because"):
        RemoteReward(server.url)(pictures, *OURS)
    assert server.asked == 1


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ((200, b"<html>welcome</html>"), "not JSON.* Is it a genrl reward server"),
        ((200, b""), "not JSON"),
        (answer([1, 2, 3]), "holds 3 scores; 4 were asked for"),
        (answer(["1", 2, 3, 4]), "numbers or null"),
        (answer([1, 2, 3, 4], version=2), "version must be 1; got 2"),
        ((200, bytes(50 * 2**20)), "answered with more than 16777216 bytes"),
    ],
)
def test_an_answer_that_is_none_is_never_a_score(scripted, pictures, reply, says: str):
    server = scripted(reply)
    with pytest.raises(RewardError, match=says) as caught:
        RemoteReward(server.url)(pictures, *OURS)
    assert server.url in str(caught.value) and server.asked == 1


def test_null_and_errors_are_nan(scripted, pictures, caplog):
    server = scripted(answer([1, None, 3, 4], errors=[None, None, "no face", None]))
    with caplog.at_level(logging.WARNING):
        scores = RemoteReward(server.url)(pictures, *OURS)
    assert scores.isnan().tolist() == [False, True, True, False] and "no face" in caplog.text


def test_silence_ends(scripted, swift, pictures, eventually):
    end = threading.Event()
    server = scripted(lambda handler: end.wait(60))
    remote = RemoteReward(server.url, retries=1)
    remote.timeout_s = 0.3
    with pytest.raises(Unreachable, match=r"gave no answer: ReadTimeout.*tried 2 times.*genrl rewards serve"):
        remote(pictures, *OURS)
    assert eventually(lambda: server.asked == 2)
    end.set()


def test_a_trickle_ends(scripted, pictures):
    sent = []

    def trickle(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "2000")
        handler.end_headers()
        for _ in range(2000):
            handler.wfile.write(b" ")
            sent.append(1)
            time.sleep(0.05)

    remote = RemoteReward(scripted(trickle).url, retries=0)
    remote.timeout_s = 0.5
    with pytest.raises(Unreachable, match=r"took longer than 0\.5 s"):
        remote(pictures, *OURS)
    assert len(sent) < 1000  # neither to the end, nor to a whole block


def test_a_connection_that_breaks_off_is_tried_again(scripted, swift, pictures):
    def half(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"version": 1')
        handler.close_connection = True

    server = scripted(half, GOOD)
    assert RemoteReward(server.url)(pictures, *OURS).tolist() == [1, 2, 3, 4]


def test_nobody_there(swift):
    with pytest.raises(Unreachable, match=r"127.0.0.1:9/info gave no answer: ConnectionError.*Is the server running"):
        RemoteReward("http://127.0.0.1:9", retries=1)


@pytest.mark.parametrize("url", ["localhost:8765", "ftp://host", "http://", ""])
def test_what_is_no_url_is_said(url: str):
    with pytest.raises(RewardError, match="must look like http"):
        RemoteReward(url)


def test_a_wrong_token_is_said_at_once(serve, monkeypatch):
    monkeypatch.setenv("GENRL_TEST_TOKEN", "right")
    with serve(lambda images, prompts, metadata: [0.0] * len(images), token="right") as url:
        for token in ("", "wrong"):
            with pytest.raises(RewardError, match=r"/info answered 401: .*Give token_env"):
                RemoteReward(url, token=token)
        assert RemoteReward(url, token_env="GENRL_TEST_TOKEN").name == "tested"
    with pytest.raises(RewardError, match="'GENRL_TEST_OTHER' should hold the token"):
        RemoteReward(url, token_env="GENRL_TEST_OTHER")


@pytest.mark.parametrize(
    ("info", "says"), [({"version": 2}, r"does not speak version 1 .*it says 2"), ({"about": {"kind": "latent"}}, "serves a latent reward")]
)
def test_what_does_not_fit_is_said_at_once(scripted, info: dict, says: str):
    with pytest.raises(RewardError, match=says):
        RemoteReward(scripted(GOOD, **info).url)


def test_a_request_too_large_is_not_even_sent(serve):
    with serve(lambda images, prompts, metadata: [0.0], max_bytes=10000) as url:
        remote = RemoteReward(url)
        with pytest.raises(RewardError, match=r"bytes and .* takes at most 10000; score fewer at a time"):
            remote(torch.zeros(1, 3, 64, 64), ["a"], [{}])


def test_out_of_memory_is_told_to_whoever_batches(serve, pictures):
    def hungry(images, prompts, metadata):
        if len(images) > 2:
            raise torch.OutOfMemoryError("tried to allocate")
        return [1.0] * len(images)

    with serve(hungry) as url:
        remote = RemoteReward(url)
        with pytest.raises(torch.OutOfMemoryError, match="ran out of memory with 4 images"):
            remote(pictures, *OURS)
        assert remote(pictures[:2], ["a"] * 2, [{}] * 2).tolist() == [1, 1]


def test_one_connection_serves_many_calls_and_training_keeps_its_generators(serve, pictures, monkeypatch):
    made = []

    connect = urllib3.connection.HTTPConnection.connect
    monkeypatch.setattr(urllib3.connection.HTTPConnection, "connect", lambda self: (made.append(1), connect(self))[1])
    state, numbers = random.getstate(), torch.get_rng_state()
    with serve(lambda images, prompts, metadata: [0.0] * len(images)) as url:
        remote = RemoteReward(url)
        for _ in range(5):
            remote(pictures, *OURS)
        remote.close()
    assert len(made) == 1 and random.getstate() == state and torch.equal(torch.get_rng_state(), numbers)


def test_no_pictures_are_no_scores(scripted):
    server = scripted(GOOD)
    assert RemoteReward(server.url)(torch.zeros(0, 3, 4, 4), [], []).shape == (0,) and server.asked == 0

"""A reward in its own process: the same scores, whatever happens to the process."""

import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch

from genrl.remote.worker import Worker
from genrl.reward import RewardError, check_scores, load_reward

OURS = ["a"] * 4, [{}] * 4


@pytest.fixture
def plug_in(tmp_path: Path):
    """Writes a reward as a third party would; gives what it is called by."""

    def write(source: str) -> str:
        path = tmp_path / "plug_in.py"
        path.write_text("import os, signal, sys, time\nimport numpy\nimport torch\n" + textwrap.dedent(source))
        return f"{path}:Reward"

    return write


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


COUNTS = """
    class Reward:
        def __init__(self, folder):
            self.folder = folder
        def __call__(self, images, prompts, metadata):
            open(f"{self.folder}/{time.time_ns()}", "w").close()
            if len(os.listdir(self.folder)) <= DEATHS:
                DIE
            return images.mean((1, 2, 3))
"""


@pytest.mark.parametrize("name", ["jpeg_size", "shapes_proxy"])
def test_scores_are_those_in_process_bit_by_bit(name: str):
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8).float() / 255
    prompts = ["a red circle", "a blue square", "a green triangle", "two red circles"]
    reward = load_reward(name)
    with Worker(name) as worker:
        assert torch.equal(worker(images, prompts, [{}] * 4), check_scores(name, reward(images, prompts, [{}] * 4), 4))
        assert worker.remote and worker.about.reads_prompt == reward.about.reads_prompt
        pid = worker.pid
        assert alive(pid)
    assert not alive(pid)
    with pytest.raises(RewardError, match="has been closed"):
        worker(images, prompts, [{}] * 4)


@pytest.mark.parametrize("death", ["os.kill(os.getpid(), signal.SIGKILL)", "os.kill(os.getpid(), signal.SIGSEGV)", "os._exit(3)"])
def test_a_death_in_mid_call_loses_nothing(plug_in, pictures, tmp_path: Path, death: str, caplog):
    (tmp_path / "calls").mkdir()
    name = plug_in(COUNTS.replace("DEATHS", "1").replace("DIE", f'print("last words"); sys.stdout.flush(); {death}'))
    with Worker(name, {"folder": str(tmp_path / "calls")}) as worker, caplog.at_level(logging.WARNING):
        first = worker.pid
        scores = worker(pictures, *OURS)
        assert torch.equal(scores, (pictures.float() / 255).mean((1, 2, 3)))
        assert worker.pid != first and worker.restarts == 2
    assert len(list((tmp_path / "calls").iterdir())) == 2  # the same batch, twice
    how = {"SIGKILL": "was killed by SIGKILL (out of memory?)", "SIGSEGV": "was killed by SIGSEGV"}
    said = next((words for sign, words in how.items() if sign in death), "ended with status 3")
    assert said in caplog.text and "started again and gets the same pictures (2 more times" in caplog.text and "last words" in caplog.text


def test_killed_from_outside_while_idle_and_in_mid_call(plug_in, pictures, tmp_path: Path, eventually):
    begun = tmp_path / "begun"
    name = plug_in(f"""
        def Reward(images, prompts, metadata):
            if not os.path.exists({str(begun)!r}):
                open({str(begun)!r}, "w").close()
                time.sleep(600)
            return images.mean((1, 2, 3))
    """)

    def kill_in_mid_call(worker: Worker) -> None:
        if eventually(begun.exists, 300):
            os.kill(worker.pid, signal.SIGKILL)

    with Worker(name) as worker:
        os.kill(worker.pid, signal.SIGKILL)
        killer = threading.Thread(target=kill_in_mid_call, args=(worker,))
        killer.start()
        assert torch.equal(worker(pictures, *OURS), (pictures.float() / 255).mean((1, 2, 3)))
        killer.join()
        assert worker.restarts == 1


def test_killed_too_often_is_an_error_with_its_last_words(plug_in, pictures, tmp_path: Path):
    (tmp_path / "calls").mkdir()
    name = plug_in(COUNTS.replace("DEATHS", "99").replace("DIE", 'os.write(2, b"no more\\n"); os._exit(9)'))
    said = pytest.raises(RewardError, match=r"(?s)ended with status 9, and was started again often enough.*no more")
    with Worker(name, {"folder": str(tmp_path / "calls")}, restarts=1) as worker, said:
        worker(pictures, *OURS)
    assert len(list((tmp_path / "calls").iterdir())) == 2


def test_a_reward_that_fails_at_import_says_why(plug_in):
    with pytest.raises(RewardError, match=r"plug_in.py:Reward.*RuntimeError: the weights are missing"):
        Worker(plug_in('print("hello")\nraise RuntimeError("the weights are missing")'))


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("jpeg_sise", {}, "no reward named 'jpeg_sise'; did you mean jpeg_size"),
        ("jpeg_size", {"size": 3}, "unexpected keyword argument 'size'"),
        ("jpeg_size", {"grow": {1}}, "options of reward 'jpeg_size' cannot go to another process"),
    ],
)
def test_what_does_not_load_says_why(name: str, options: dict, says: str):
    with pytest.raises(RewardError, match=says):
        Worker(name, options)


def test_a_process_that_dies_at_import_is_quoted(plug_in):
    with pytest.raises(RewardError, match=r"(?s)did not start: its process .* ended with status 7.*out of cheese"):
        Worker(plug_in('os.write(2, b"out of cheese\\n")\nos._exit(7)'))


def test_loading_has_a_limit(plug_in):
    with pytest.raises(RewardError, match=r"was not ready after 0.5 s; raise start_timeout_s"):
        Worker(plug_in("time.sleep(60)"), start_timeout_s=0.5)


def test_an_interpreter_that_is_none(tmp_path: Path):
    with pytest.raises(RewardError, match=r"cannot run .*no_python"):
        Worker("jpeg_size", python=tmp_path / "no_python")


def test_no_answer_is_an_error(plug_in, pictures):
    name = plug_in("def Reward(images, prompts, metadata):\n    print('thinking', flush=True)\n    time.sleep(60)")
    with Worker(name, timeout_s=1.0) as worker:
        with pytest.raises(RewardError, match=r"(?s)did not answer within 1 s.*raise timeout_s.*thinking"):
            worker(pictures, *OURS)
        pid = worker.pid
    assert not alive(pid)


def test_a_chatty_reward_that_reads_stdin_disturbs_nothing(plug_in, pictures, capfd):
    name = plug_in("""
        print("import")
        assert sys.stdin.read() == ""
        def Reward(images, prompts, metadata):
            print("{not: json}\\n" * 20000)
            os.write(1, b"raw\\n"); os.write(2, bytes(range(256)))
            return [1, 2, 3, 4]
    """)
    with Worker(name) as worker:
        for _ in range(3):
            assert worker(pictures, *OURS).tolist() == [1, 2, 3, 4]
    assert capfd.readouterr() == ("", "")


def test_an_error_of_the_reward_is_not_a_death(plug_in, pictures):
    name = plug_in("""
        def Reward(images, prompts, metadata):
            if prompts[0] == "float16":
                return images.mean((1, 2, 3)).half()
            if prompts[0] == "numpy":
                return numpy.arange(4)
            if prompts[0] == "meta":
                return torch.zeros(4, device="meta")
            raise KeyError("colour")
    """)
    with Worker(name) as worker:
        with pytest.raises(RewardError, match=r"in its own process.*raised KeyError: 'colour'"):
            worker(pictures, *OURS)
        with pytest.raises(RewardError, match="meta"):
            worker(pictures, ["meta"] * 4, [{}] * 4)
        assert worker(pictures, ["numpy"] * 4, [{}] * 4).tolist() == [0, 1, 2, 3]
        assert torch.equal(worker(pictures, ["float16"] * 4, [{}] * 4), (pictures.float() / 255).mean((1, 2, 3)).half().float())
        with pytest.raises(RewardError, match=r"metadata 'x' .*cannot go to a reward in another process"):
            worker(pictures, ["a"] * 4, [{"x": object()}] * 4)
        assert worker.restarts == 3


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "sys.exit()", "raise SystemError"])
def test_no_process_outlives_its_parent(tmp_path: Path, eventually, end: str):
    code = f"import os, sys\nfrom genrl.remote.worker import Worker\nw = Worker('jpeg_size')\nprint(w.pid, flush=True)\n{end}"
    run = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=300)
    pid = int(run.stdout)
    assert eventually(lambda: not alive(pid))

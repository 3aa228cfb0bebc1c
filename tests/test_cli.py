import pytest
import yaml
from PIL import Image

from genrl.cli import main


def test_rewards_and_config(capsys):
    main(["rewards"])
    assert "shapes_judge" in capsys.readouterr().out
    main(["config", "ac_flow"])
    assert yaml.safe_load(capsys.readouterr().out)["actor"]["weighting"] == "implicit"


def test_score_pictures(tmp_path, capsys):
    Image.new("RGB", (32, 32), "white").save(tmp_path / "a.png")
    main(["score", "jpeg_size", str(tmp_path / "a.png"), "--prompt", "white"])
    assert float(capsys.readouterr().out.split()[0]) < 0


def test_sample_from_the_shapes_world(tmp_path, capsys):
    main(["sample", "shapes", "a red circle", "--images", "2", "--steps", "2", "--out", str(tmp_path)])
    assert Image.open(tmp_path / "00001.png").size == (64, 64)


@pytest.mark.parametrize(
    "arguments",
    [["score", "nonsense", "x.png", "--prompt", "p"], ["report", "/nowhere"], ["config", "nothing"], ["sample", "/nowhere", "p"]],
)
def test_a_failure_is_one_message(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 1 and capsys.readouterr().err.startswith("error: ")

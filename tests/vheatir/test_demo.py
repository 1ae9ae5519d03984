"""vheatir demo: what becomes of it when its training is stopped, or does not learn."""

import json
from pathlib import Path

import pytest

from vheatir import demo
from vheatir.errors import UserError
from vheatir.train import trainer


def test_a_stopped_training_ends_the_demonstration_with_its_status(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "restore_photographs", lambda out: None)
    monkeypatch.setattr(trainer, "train", lambda recipe, overrides: False)
    assert demo.main(["--out", str(tmp_path)]) == 130
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("psnr, learned", [(30.0, True), (20.0, False)])
def test_a_finished_training_is_checked(psnr, learned, tmp_path, monkeypatch, capsys):
    points = [{"train/l_pix": 0.1}, {"train/l_pix": 0.05}, {"val/psnr": psnr, "val/input_psnr": 20.2}]
    (tmp_path / "smoke").mkdir()
    (tmp_path / "smoke" / "curves.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    monkeypatch.setattr(trainer, "train", lambda recipe, overrides: True)
    if learned:
        assert demo.train_smoke(tmp_path) == 0
    else:
        with pytest.raises(UserError, match="did not learn"):
            demo.train_smoke(tmp_path)
    assert f"20.20 (noisy) -> {psnr:.2f} dB" in capsys.readouterr().out


@pytest.mark.parametrize("out", ["file", "file/folder", "/proc"])
def test_a_place_that_takes_no_images_is_refused_before_the_work(out, tmp_path, monkeypatch):
    """A folder that is there may take none, too."""
    (tmp_path / "file").touch()
    if out == "/proc" and not Path(out).is_dir():
        pytest.skip("no folder that is known to take no files")
    monkeypatch.setattr(demo, "restore_photographs", lambda out: pytest.fail("it began"))
    with pytest.raises(UserError, match=r"nothing can be written there .*choose another place"):
        demo.main(["--out", str(tmp_path / out), "--no-train"])

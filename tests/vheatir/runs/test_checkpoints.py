"""Checkpoint files: written whole or not at all, the newest few kept, damage noticed wherever it is."""

import logging

import pytest
import torch

from vheatir.errors import UserError
from vheatir.runs.checkpoints import has_checkpoint, load_latest, save_checkpoint


def content(iteration=1):
    generator = torch.Generator().manual_seed(iteration)
    return {
        "iteration": iteration,
        "values": torch.randn(500, generator=generator),
        "best": None,
        "list": [1.5, {2: 3}],
    }


def same(a, b):
    return {**a, "values": a["values"].tolist()} == {**b, "values": b["values"].tolist()}


def test_what_was_saved_is_loaded(tmp_path):
    path = save_checkpoint(tmp_path / "new", 7, content(7), keep=2)
    assert path.name == "iter_00000007.pt" and same(load_latest(tmp_path / "new"), content(7))


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_newest_are_kept(tmp_path, keep):
    (tmp_path / "iter_note.pt").write_text("not ours")
    for iteration in (5, 10, 900, 100_000_000):
        save_checkpoint(tmp_path, iteration, content(iteration), keep)
    kept = sorted(path.name for path in tmp_path.glob("iter_*.pt") if path.name != "iter_note.pt")
    assert len(kept) == min(keep, 4) and load_latest(tmp_path)["iteration"] == 100_000_000
    assert (tmp_path / "iter_note.pt").exists()


def test_the_best_is_kept_beside_the_newest(tmp_path):
    for iteration in (1, 2, 3, 4):
        save_checkpoint(tmp_path, iteration, content(iteration), keep=1, best=min(iteration, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iter_00000002.pt", "iter_00000004.pt"]
    save_checkpoint(tmp_path, 5, content(5), keep=1, best=5)
    assert [path.name for path in tmp_path.iterdir()] == ["iter_00000005.pt"]


def test_damaged_ones_ahead_do_not_take_the_place_of_whole_ones(tmp_path):
    for iteration in (1, 2, 9):
        save_checkpoint(tmp_path, iteration, content(iteration), keep=3)
    (tmp_path / "iter_00000009.pt").write_bytes(b"cut")
    assert load_latest(tmp_path)["iteration"] == 2  # a resumed run goes on from there
    save_checkpoint(tmp_path, 3, content(3), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iter_00000002.pt", "iter_00000003.pt"]


def test_the_best_of_a_run_resumed_with_larger_batches_is_not_taken_for_the_newest(tmp_path):
    """Half as many steps for the same images: the run goes on from step 10 at step 5."""
    for iteration in (8, 10):
        save_checkpoint(tmp_path, iteration, content(iteration), keep=2, best=iteration)
    for iteration in (6, 7):
        save_checkpoint(tmp_path, iteration, content(iteration), keep=2, best=10)
        assert load_latest(tmp_path)["iteration"] == iteration


def test_the_best_before_the_steps_became_fewer_is_kept_until_there_is_a_better_one(tmp_path):
    """To go on from the best one deletes the newer ones, whatever their numbers."""
    for iteration in (8, 10):
        save_checkpoint(tmp_path, iteration, content(iteration), keep=2, best=8)
    for iteration in (6, 7, 8, 9):  # the run goes on from step 10 at step 5
        save_checkpoint(tmp_path, iteration, content(iteration), keep=1, best=8)
        assert load_latest(tmp_path)["iteration"] == iteration
    for path in tmp_path.glob("iter_*.pt"):
        path.unlink()
    assert has_checkpoint(tmp_path) and same(load_latest(tmp_path), content(8))
    save_checkpoint(tmp_path, 10, content(10), keep=1, best=10)
    assert [path.name for path in tmp_path.iterdir()] == ["iter_00000010.pt"]


def test_no_folder_and_an_empty_one_hold_no_checkpoint(tmp_path):
    assert load_latest(tmp_path) is None and load_latest(tmp_path / "missing") is None


def test_a_failed_write_leaves_the_former_and_nothing_else(tmp_path):
    save_checkpoint(tmp_path, 1, content(1), keep=2)
    with pytest.raises(Exception, match=r"pickle|lambda"):
        save_checkpoint(tmp_path, 2, {"function": lambda: None}, keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["iter_00000001.pt"]


def test_a_file_cut_anywhere_is_passed_over(tmp_path, caplog):
    save_checkpoint(tmp_path, 1, content(1), keep=2)
    newest = save_checkpoint(tmp_path, 2, content(2), keep=2)
    data = newest.read_bytes()
    lengths = {*range(0, len(data), 29), *range(100), *range(len(data) - 150, len(data))}
    for length in sorted(lengths):
        newest.write_bytes(data[:length])
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="vheatir"):
            assert same(load_latest(tmp_path), content(1)), length
        assert f"{newest} is damaged" in caplog.text, length


def test_no_flipped_bit_anywhere_gives_other_values(tmp_path):
    save_checkpoint(tmp_path, 1, content(1), keep=2)
    newest = save_checkpoint(tmp_path, 2, content(2), keep=2)
    data = newest.read_bytes()
    for place in range(0, len(data), 23):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        newest.write_bytes(damaged)
        loaded = load_latest(tmp_path)
        assert same(loaded, content(loaded["iteration"])), place


@pytest.mark.parametrize("share", [0.35, 0.5, 0.65])
def test_a_flipped_bit_in_the_tensors_is_noticed(tmp_path, share):
    """torch.load itself reads such a file without complaint."""
    save_checkpoint(tmp_path, 1, content(1), keep=2)
    newest = save_checkpoint(tmp_path, 2, content(2), keep=2)
    data, values = bytearray(newest.read_bytes()), content(2)["values"].numpy().tobytes()
    data[data.index(values) + int(share * len(values))] ^= 1
    newest.write_bytes(data)
    assert torch.load(newest, weights_only=True)["iteration"] == 2
    assert same(load_latest(tmp_path), content(1))


def test_a_file_that_wants_to_run_code_is_not_loaded(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").write_text, ("x",))

    torch.save({"iteration": Hostile()}, tmp_path / "iter_00000003.pt")
    with pytest.raises(UserError, match="none of 1 checkpoints is whole; start again without --resume"):
        load_latest(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), PermissionError(13, "Permission denied"), MemoryError()]
)
def test_one_that_cannot_be_read_is_not_taken_for_damaged(tmp_path, error, monkeypatch):
    for iteration in (1, 2):
        save_checkpoint(tmp_path, iteration, content(iteration), keep=2)

    def refuse(path):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.read_bytes", refuse)
        with pytest.raises(UserError, match=r"iter_00000002.pt cannot be read .*nothing was changed"):
            load_latest(tmp_path)
    assert same(load_latest(tmp_path), content(2))

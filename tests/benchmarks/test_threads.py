import sys

from benchmarks import threads


def test_every_layer_has_a_row_with_its_times(tmp_path, monkeypatch, capsys):
    words = [f"data_path={tmp_path}", "layers=[[recurrent,2,8],[feed-forward,2,8]]", "repeats=1", "threads=2"]
    monkeypatch.setattr(sys, "argv", ["threads.py", *words])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    threads.main()
    out = capsys.readouterr().out
    assert "2 threads, busy" in out
    assert len([line for line in out.splitlines() if line.startswith("│")]) == 2
    assert threads.product("recurrent", 64, 128) == 64 * 3 * 128 * 128

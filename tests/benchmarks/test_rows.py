"""The benchmark of many rows: its file is the same each time, and every stage is measured."""

from benchmarks.rows import measure, write_rows


def test_the_file_is_the_same_in_every_run(tmp_path):
    for name in ("one", "other"):
        write_rows(tmp_path / name, 20)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    assert len((tmp_path / "one").read_text().splitlines()) == 20


def test_every_stage_is_measured(tmp_path, monkeypatch):
    asked = []

    def run(file, workdir, stages):
        asked.append(stages)
        for stage in stages.split(","):
            (workdir / f"01_{stage}").mkdir(parents=True, exist_ok=True)
        return 2.0, 300.0

    monkeypatch.setattr("benchmarks.rows.run", run)
    found = measure(tmp_path, 10)
    assert asked[:2] == ["load", "load,score"]
    assert [one.what for one in found][:4] == ["load", "score", "fit_reference", "select"]
    assert all(one.seconds == 2.0 and one.peak == 300.0 for one in found)

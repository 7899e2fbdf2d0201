"""scripts/report.py: one page from a run directory, of whatever there is."""

import base64
import re

import pytest

from analysis.synthetic import write_experts, write_run
from deepseek_mini import run_files
from script_modules import load_script

report = load_script("report")
PICTURES = ("loss and bits per byte", "learning rate and batch size", "tokens per second and device-seconds")
EXPERT_PICTURES = (
    *("MaxVio, entropy and dead experts", "load of each expert over time", "gate biases"),
    *("co-activation", "kinds of token by expert", "data domains by expert"),
)


def pictures(page: str) -> list[str]:
    found = re.findall(r'<img alt="([^"]*)" src="data:image/png;base64,([^"]*)">', page)
    assert all(base64.b64decode(data).startswith(b"\x89PNG") for _, data in found)
    return [name for name, _ in found]


def test_the_page_holds_every_picture_and_needs_no_other_file(tmp_path, capsys):
    run = write_run(tmp_path / "run", "model.n_dense_layers=1")
    write_experts(run)
    (run / run_files.SAMPLES).write_text('{"step": 40, "prompt": "if a<b", "text": " & <i>more"}\n')
    (run / run_files.EVENTS).write_text('{"step": 3, "kind": "spike", "message": "loss is 9"}\n')
    assert report.main([str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    page = (run / "report.html").read_text()
    assert pictures(page) == [*PICTURES, *EXPERT_PICTURES]
    assert "MTP 1" in page
    assert "<td>1.50</td>" in page  # groups per token
    assert "<b>if a&lt;b</b> &amp; &lt;i&gt;more" in page
    assert "loss is 9" in page
    assert "c0ffee" in page
    assert "moe_inter_dim: 16" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "<script" not in page


def test_a_run_without_records_of_its_experts_says_so(tmp_path):
    run = write_run(tmp_path / "run")
    assert report.main([str(run), "--out", str(tmp_path / "new/page.html")]) == 0
    page = (tmp_path / "new/page.html").read_text()
    assert pictures(page) == [*PICTURES, EXPERT_PICTURES[0]]
    assert "experts.jsonl is not there" in page


def test_gates_without_biases_have_no_picture_of_them(tmp_path):
    run = write_run(tmp_path / "run", "model.n_dense_layers=1", "model.moe.balance=none")
    write_experts(run, bias=False)
    assert report.main([str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "gate biases" not in pictures(page)
    assert "have no bias" in page


def test_a_dense_model_has_no_section_on_experts(tmp_path):
    run = write_run(tmp_path / "run", "model.n_dense_layers=2", "model.mtp.depth=0")
    assert report.main([str(run)]) == 0
    assert "Experts" not in (run / "report.html").read_text()


@pytest.mark.parametrize("recorded", [True, False])
def test_the_picture_of_a_run_is_one_png(tmp_path, recorded):
    run = write_run(tmp_path / "run", "model.n_dense_layers=1")
    if recorded:
        write_experts(run)
    assert report.main([str(run), "--figure", str(tmp_path / "docs/tiny.png")]) == 0
    assert (tmp_path / "docs/tiny.png").read_bytes().startswith(b"\x89PNG")
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("fault", ["nowhere", "damaged", "unwritable"])
def test_bad_input_exits_2_with_one_line(tmp_path, capsys, fault):
    run = write_run(tmp_path / "run")
    (run / run_files.EXPERTS).write_text("{}\n{}\n" if fault == "damaged" else "")
    arguments = {
        "nowhere": [str(tmp_path / "nowhere")],
        "damaged": [str(run)],
        "unwritable": [str(run), "--out", str(run / "config.yaml/page.html")],
    }[fault]
    assert report.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1

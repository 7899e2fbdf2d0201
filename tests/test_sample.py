"""scripts/sample.py: text and JSON from a run, and errors that name the file."""

import json
import re
import runpy
from pathlib import Path

import pytest

from deepseek_mini.compose import load_config
from deepseek_mini.training.trainer import run
from small_run import SMALL, write_corpus

MAIN = runpy.run_path(str(Path(__file__).resolve().parents[1] / "scripts" / "sample.py"))["main"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    corpus = write_corpus(folder / "corpus")
    paths = [f"data.path='{corpus}/*.txt'", f"data.cache_dir='{folder / 'cache'}'"]
    run(load_config([*SMALL, *paths]), folder / "run", [])
    return folder / "run"


def test_json_has_the_agreed_keys_and_nothing_else_on_stdout(run_dir, capsys):
    assert MAIN([str(run_dir), "--prompt", "the cat", "--max-new-tokens", "5", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {"text", "tokens", "tokens_per_second", "acceptance_rate"}
    assert len(answer["tokens"]) <= 5
    assert answer["acceptance_rate"] is None


def test_temperature_zero_repeats(run_dir, capsys):
    arguments = [
        str(run_dir),
        "--prompt",
        "two dogs",
        "--temperature",
        "0",
        "--max-new-tokens",
        "6",
        "--json",
    ]
    texts = []
    for _ in range(2):
        assert MAIN(arguments) == 0
        texts.append(json.loads(capsys.readouterr().out)["text"])
    assert texts[0] == texts[1]


def test_plain_output_is_the_prompt_and_its_continuation_with_the_speed_beside(run_dir, capsys):
    arguments = [str(run_dir), "--prompt", "two dogs", "--max-new-tokens", "6"]
    assert MAIN([*arguments, "--json"]) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    assert MAIN(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out == f"two dogs{text}\n"
    assert re.fullmatch(r"\d tokens, [\d.]+ tokens/s\n", captured.err)


def test_speculative_sampling_tells_its_acceptance_rate_and_gain(run_dir, capsys):
    arguments = [str(run_dir), "--temperature", "0", "--max-new-tokens", "20"]
    answers = []
    for extra in ([], ["--speculative"]):
        assert MAIN([*arguments, *extra, "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    plain, speculative = answers
    assert plain["tokens"] == speculative["tokens"]
    assert 0 <= speculative["acceptance_rate"] <= 1
    assert MAIN([*arguments, "--speculative"]) == 0
    assert re.search(r"\d% of drafts accepted, [\d.]+x plain decoding", capsys.readouterr().err)


def test_stop_ends_the_text_before_the_token(run_dir, capsys):
    arguments = [str(run_dir), "--temperature", "0", "--max-new-tokens", "12", "--json"]
    assert MAIN(arguments) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    assert MAIN([*arguments, "--stop", text[3]]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == text[: text.index(text[3])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-new-tokens", "0"], "max-new-tokens 0"),
        (["--temperature", "-1"], "temperature -1"),
        (["--top-k", "0"], "top-k 0"),
        (["--top-p", "1.5"], "top-p 1.5"),
        (["--stop", "two"], "stop 'two': not a token of this tokenizer, which reads it as 't', 'w', 'o'"),
        (["--stop", ""], "reads it as nothing"),
        (["--prompt", ""], "prompt is empty"),
        (["--prompt", "a\udcff"], "prompt 'a\\udcff': not UTF-8"),
        (["--stop", "\udcff"], "stop '\\udcff': not UTF-8"),
        (["--prompt", "a" * 4096], "leaves no room within model.max_seq_len=4096"),
    ],
)
def test_bad_arguments_exit_with_2_and_name_the_argument(run_dir, capsys, arguments, message):
    assert MAIN([str(run_dir), *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_a_directory_that_is_no_run_is_named(tmp_path, capsys):
    assert MAIN([str(tmp_path / "nowhere")]) == 2
    assert "nowhere/config.yaml: no such file" in capsys.readouterr().err


def test_a_run_without_a_checkpoint_is_named(run_dir, tmp_path, capsys):
    for name in ("config.yaml", "tokenizer.json"):
        (tmp_path / name).write_bytes((run_dir / name).read_bytes())
    assert MAIN([str(tmp_path)]) == 2
    assert "checkpoints: no checkpoint yet" in capsys.readouterr().err


def test_a_prompt_is_read_as_utf8_whatever_the_locale(run_dir, capsys):
    arguments = [str(run_dir), "--temperature", "0", "--max-new-tokens", "4", "--json"]
    texts = []
    for prompt in ("na\u00efve", "na\udcc3\udcafve"):  # the second is what a C locale makes of the first
        assert MAIN([*arguments, "--prompt", prompt]) == 0
        texts.append(json.loads(capsys.readouterr().out)["text"])
    assert texts[0] == texts[1]


def test_one_token_has_no_speed(run_dir, capsys):
    assert MAIN([str(run_dir), "--max-new-tokens", "1", "--speculative"]) == 0
    assert capsys.readouterr().err == "1 token\n"

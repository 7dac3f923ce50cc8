"""`finetune validate`: what it says about each kind of bad manifest, and how fast it answers."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from finetune_operator.cli.__main__ import main
from finetune_operator.cli.check import problems_of
from finetune_operator.cli.documents import MAX_BYTES, ReadError, read_documents
from tests.unit.rule_cases import BAD_RULES, BAD_TYPES, CASES, Case, job, profile


def _write(folder: Path, text: str | bytes) -> str:
    path = folder / "job.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize("case", [case for case in CASES if case.field is None], ids=lambda case: case.id)
def test_a_good_manifest_has_no_problem(case: Case) -> None:
    assert problems_of(case.manifest) == []


@pytest.mark.parametrize("case", [*BAD_TYPES, *BAD_RULES], ids=lambda case: case.id)
def test_a_bad_manifest_is_answered_with_field_and_sentence(case: Case) -> None:
    problems = problems_of(case.manifest)
    assert [case.field in problem.field and case.sentence in problem.text for problem in problems].count(True) == 1, (
        problems
    )


def test_a_pattern_that_does_not_compile_is_told_before_anything_runs() -> None:
    """Python's words: the API server knows another dialect, so that the operator says it there."""
    spec = {"spec.evaluation": {"metrics": ["regex"], "regex": {"pattern": "(a"}}}
    assert [str(problem) for problem in problems_of(job(spec))] == [
        "spec.evaluation.regex.pattern: must be a regular expression as Python has them: missing ), unterminated "
        'subpattern at position 0 (is "(a")'
    ]


def test_no_case_has_a_second_problem() -> None:
    several = {case.id: found for case in CASES if len(found := problems_of(case.manifest)) > 1}
    assert several == {}


def test_all_problems_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = job({"spec.method": "lora", "spec.lora.rank": 0, "spec.lora.rnk": 1, "spec.model.uri": "x"})
    path = _write(tmp_path, yaml.safe_dump(bad))
    assert main(["validate", path]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f'{path}: spec.method: must be LoRA, QLoRA or Full (is "lora"): did you mean LoRA?',
        f"{path}: spec.lora.rank: must be at least 1 (is 0)",
        f"{path}: spec.lora.rnk: unknown field: did you mean rank?",
        f"{path}: spec.model.uri: not a URI that is understood here: "
        "write hf://organisation/name, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or pvc://claim/path",
        "4 problems found",
    ]


def test_a_valid_file_is_one_line_a_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _write(tmp_path, yaml.safe_dump_all([job(name="one"), job(name="two"), profile({})]))
    assert main(["validate", path]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{path}, document 1: FineTuneJob one is valid",
        f"{path}, document 2: FineTuneJob two is valid",
        f"{path}, document 3: FineTuneProfile pool is valid",
    ]


def test_other_kinds_are_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3"}}
    path = _write(tmp_path, yaml.safe_dump_all([secret, job()]))
    assert main(["validate", path]) == 0
    assert "document 1: Secret passed over" in capsys.readouterr().out


def test_a_folder_stands_for_its_manifests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(job(name="one")))
    (tmp_path / "b.json").write_text(json.dumps(job(name="two")))
    (tmp_path / "notes.txt").write_text("not a manifest")
    assert main(["validate", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(job()).encode())))
    assert main(["validate", "-"]) == 0
    assert capsys.readouterr().out == "-: FineTuneJob case is valid\n"


def test_file_uris_are_for_local_runs_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _write(tmp_path, yaml.safe_dump(job({"spec.dataset.uri": "file:///data.jsonl"})))
    assert main(["validate", "--local", path]) == 0
    assert main(["validate", path]) == 2
    assert "file:// works with `finetune run` only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "field", "sentence"),
    [
        pytest.param([], "", "must be a mapping that begins with apiVersion", id="list"),
        pytest.param({"spec": {}}, "apiVersion", "write finetuning.dev/v1alpha1", id="no-version"),
        pytest.param({**job(), "apiVersion": "finetuning.dev/v1"}, "apiVersion", "(is finetuning.dev/v1)", id="v1"),
        pytest.param({**job(), "kind": "FinetuneJob"}, "kind", "must be FineTuneJob (is FinetuneJob)", id="kind-case"),
        pytest.param({**job(), "metadata": {}}, "metadata.name", "is missing", id="no-name"),
        pytest.param({**job(), "metadata": {"name": 7}}, "metadata.name", 'put it in quotes, "7"', id="name-number"),
        pytest.param({**job(), "lora": {}}, "lora", "it belongs under spec", id="misplaced"),
        pytest.param({**job(), "spec": []}, "spec", "must be a mapping", id="spec-list"),
    ],
)
def test_an_object_of_a_wrong_form(value: object, field: str, sentence: str) -> None:
    problems = problems_of(value)
    assert any(problem.field == field and sentence in problem.text for problem in problems), problems


def test_generate_name_counts_with_what_is_added() -> None:
    manifest = {**job(), "metadata": {"generateName": "a" * 36}}
    assert [problem.field for problem in problems_of(manifest)] == ["metadata.name"]
    assert problems_of({**job(), "metadata": {"generateName": "a" * 35}}) == []


@pytest.mark.parametrize(
    ("defaults", "field"),
    [
        pytest.param({"hyperparameters": {"epochs": 0}}, "spec.defaults.hyperparameters.epochs", id="range"),
        pytest.param({"resources": {"gpus": 1}}, "spec.defaults.resources.gpus", id="unknown"),
        pytest.param({"profile": "other"}, "spec.defaults.profile", id="profile"),
        pytest.param({"method": "Full", "lora": {"rank": 8}}, "spec.defaults", id="rule"),
    ],
)
def test_defaults_of_a_profile_are_checked_as_part_of_a_job(defaults: dict[str, object], field: str) -> None:
    assert [problem.field for problem in problems_of(profile({"defaults": defaults}))] == [field]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("a: b\n\tc: d\n", "line 2, column 1: not YAML", id="tab"),
        pytest.param("a: b\n\tc: d\n", "indent with spaces, not with tabs", id="tab-hint"),
        pytest.param("spec: {a: 1\nb: 2", "line 2, column 2: not YAML", id="unclosed"),
        pytest.param("a: 1\nb: 2\na: 3\n", "line 3: 'a' is given twice, first in line 1", id="double-key"),
        pytest.param(b"\xff\xfea\x00", "not UTF-8 text (byte 0)", id="utf-16"),
        pytest.param("a: \x00", "not YAML", id="binary"),
        pytest.param("a: *nowhere", "line 1, column 4: not YAML: found undefined alias", id="alias"),
        pytest.param("a: !!python/object:os.system {}", "could not determine a constructor", id="python-tag"),
    ],
)
def test_what_is_not_yaml_is_placed(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ReadError) as caught:
        read_documents(_write(tmp_path, text))
    assert message in str(caught.value)


def bomb(levels: int, *, each: str = "[{}]") -> str:
    """Ten aliases of the level before, a level: 10 to the power of levels values from a line each."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} {each.format(', '.join([f'*a{n - 1}'] * 10))}" for n in range(1, levels + 1)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(bomb(6), "line 6: more than 100000 values, those that aliases stand for included", id="laughs"),
        pytest.param(bomb(6, each="{{<<: [{}]}}"), "line 6: more than 100000 values", id="merges"),
        pytest.param("\n---\n".join([bomb(4)] * 5), "more than 100000 values", id="documents"),
        pytest.param("a: &a [*a]", "line 1: *a stands inside of what it stands for", id="circle"),
        pytest.param("a: &a {b: &b [*a]}", "line 1: *a stands inside", id="wider-circle"),
        pytest.param("a: &a 1\n---\nb: &a [*a]", "line 3: *a stands inside", id="circle-of-a-second-document"),
        pytest.param("[" * 5000, "nested too deeply", id="depth"),
        pytest.param("a: " + "x" * MAX_BYTES, "larger than 3 MiB", id="size"),
        pytest.param("? [a]\n: b", "line 1: a key is a list or a mapping", id="key-of-lists"),
        pytest.param("a: !!bool perhaps", "not YAML: 'perhaps'", id="bool-that-is-none"),
        pytest.param("a: !!timestamp never", "not YAML", id="time-that-is-none"),
        pytest.param("a: !!int ''", "not YAML", id="number-that-is-none"),
    ],
)
def test_what_would_be_huge_or_never_end_is_refused_unread(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ReadError) as caught:
        read_documents(_write(tmp_path, text))
    assert message in str(caught.value)


def test_aliases_that_stand_for_little_are_read(tmp_path: Path) -> None:
    text = bomb(3) + "\nb: {<<: *a0, y: 2}"
    assert read_documents(_write(tmp_path, text))[0].value["b"] == {"x": 1, "y": 2}


@pytest.mark.parametrize("command", ["validate", "run", "diff", "estimate"])
def test_every_command_that_reads_a_manifest_says_so(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, _write(tmp_path, bomb(6))]) == 2
    assert "more than 100000 values" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"), [("", "there is nothing in it"), ("---\n---\n", "there is nothing in it")]
)
def test_an_empty_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    assert main(["validate", _write(tmp_path, text)]) == 2
    assert "there is nothing in it" in capsys.readouterr().err


def test_a_missing_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "absent.yaml"]) == 2
    assert "absent.yaml: cannot be read: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("1E5", 100000),
        ("1.5", 1.5),
        (".5", 0.5),
        ("16.0", 16),
        ("16", 16),
        ("0x10", 16),
        ("true", True),
        ("yes", True),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("1.2.3", "1.2.3"),
        ("80Gi", "80Gi"),
        ("e5", "e5"),
        ('"2e-4"', "2e-4"),
    ],
)
def test_scalars_are_read_as_kubectl_reads_them(tmp_path: Path, text: str, value: object) -> None:
    found = read_documents(_write(tmp_path, f"a: {text}\nb:\n"))[0].value
    assert found == {"a": value}
    assert type(found["a"]) is type(value)


def test_it_imports_nothing_heavy(tmp_path: Path) -> None:
    """That it answers in half a second is measured in benchmarks/results."""
    path = _write(tmp_path, yaml.safe_dump(job()))
    code = (
        "import sys; from finetune_operator.cli.__main__ import main; code = main(['validate', sys.argv[1]]);"
        "heavy = {'torch', 'transformers', 'kopf', 'kubernetes', 'boto3', 'numpy', 'asyncio'} & sys.modules.keys();"
        "print(heavy or '', file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""

"""The outputs: weights that say what was trained, files that do not depend on time or machine, a page that escapes."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune_contract import paths
from finetune_contract.exit_codes import ExitCode
from finetune_contract.outcome import Manifest, OutputFile, artifact
from finetune_contract.output_spec import Merged, MergedBase
from finetune_contract.spec import Quantization
from finetune_trainer.errors import TrainerError
from finetune_trainer.outputs import export
from finetune_trainer.storage.local import FolderStore
from tests.support.models import tiny_llama
from tests.support.prepared import Case, tiny_model
from tests.support.training import THIRD_PARTY, Outcome, forget_preemption, make_case, train

pytestmark = THIRD_PARTY

NASTY = '<img src=x onerror="alert(1)"> </td> {{ 7*7 }}'
SPEC: dict[str, Any] = {
    "evaluation": {"metrics": ["exactMatch"], "maxNewTokens": 3, "samples": {"prompts": [NASTY, "1 plus 2"]}},
    "lora": {"rank": 8},
}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("export"), spec=SPEC, total_steps=6, learning_rate=2e-2)


@pytest.fixture(scope="module")
def outcome(case: Case) -> Iterator[Outcome]:
    yield train(case)
    forget_preemption()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(20).unsqueeze(0)).logits
    return found


def base_folder(case: Case) -> str:
    return case.config.spec.model.uri.removeprefix("file://")


def test_the_adapter_on_the_base_is_the_merged_model(case: Case, outcome: Outcome) -> None:
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(base_folder(case), dtype=torch.float32)
    before = logits(base)
    adapted = logits(PeftModel.from_pretrained(base, str(outcome.run / paths.ADAPTER)))
    merged = AutoModelForCausalLM.from_pretrained(outcome.run / paths.MERGED, dtype=torch.float32)

    assert (adapted - before).abs().max() > 0.1  # it has learnt something
    # Merged in float32, written in bfloat16: the rounding is all that differs.
    assert (
        torch.nn.functional.kl_div(
            logits(merged).log_softmax(-1), adapted.log_softmax(-1), log_target=True, reduction="batchmean"
        )
        < 1e-2 * 20
    )


def test_merging_in_float32_is_exact(tmp_path: Path) -> None:
    from peft import PeftModel

    output = {"uri": f"file://{tmp_path}/out", "merged": {"dtype": "float32"}}
    case = make_case(tmp_path, spec={"output": output}, learning_rate=2e-2)
    run = train(case).run

    base = AutoModelForCausalLM.from_pretrained(base_folder(case), dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, str(run / paths.ADAPTER))
    merged = AutoModelForCausalLM.from_pretrained(run / paths.MERGED, dtype=torch.float32)
    assert (logits(merged) - logits(adapted)).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_full_weights_are_written_as_asked(tmp_path: Path, dtype: str) -> None:
    output = {"uri": f"file://{tmp_path}/out", "merged": {"dtype": dtype, "enabled": False}}
    run = train(make_case(tmp_path, method="Full", spec={"output": output}, total_steps=2)).run

    # The weights are the result of full tuning: they are written whatever `merged.enabled` says.
    model = AutoModelForCausalLM.from_pretrained(run / paths.MERGED)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert json.loads((run / paths.MERGED / "config.json").read_text())["use_cache"] is True


def test_a_merge_that_is_not_exact_is_refused(
    case: Case, outcome: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune_trainer.outputs.merge import write_merged

    monkeypatch.setattr("finetune_trainer.outputs.merge.TOLERANCE", 0.0)
    with pytest.raises(TrainerError, match="differ") as failure:
        write_merged(Path(base_folder(case)), outcome.run / paths.ADAPTER, tmp_path / "merged", settings=Merged())
    assert failure.value.code is ExitCode.INTERNAL_ERROR


def test_a_number_format_that_cannot_hold_the_weights_is_refused(case: Case, outcome: Outcome, tmp_path: Path) -> None:
    from finetune_trainer.outputs.merge import write_full

    model = AutoModelForCausalLM.from_pretrained(base_folder(case), dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight[0, 0] = 1e6  # more than float16 has
    model.save_pretrained(tmp_path / "tuned")

    with pytest.raises(TrainerError, match=r"set output.merged.dtype to float32"):
        write_full(tmp_path / "tuned", tmp_path / "merged", settings=Merged(dtype="float16"))
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("base", [None, MergedBase.ORIGINAL])
def test_qlora_is_merged_into_the_base_that_it_was_trained_on_unless_the_model_s_own_is_asked_for(
    tmp_path: Path, base: MergedBase | None
) -> None:
    output = {"uri": f"file://{tmp_path}/out", "merged": {"base": base, "dtype": "float32"}}
    case = make_case(tmp_path, method="QLoRA", spec={"output": output}, learning_rate=2e-2)
    run = train(case).run

    dequantized, merged = as_trained(case, run), logits(AutoModelForCausalLM.from_pretrained(run / paths.MERGED))
    same = bool((merged - dequantized).abs().max() < 1e-4)
    manifest = Manifest.model_validate_json((run / paths.MANIFEST).read_bytes())
    assert same == (base is None)
    assert manifest.merged_from == (export.MERGED_FROM if base else export.MERGED_FROM_DEQUANTIZED)


def as_trained(case: Case, run: Path) -> torch.Tensor:
    """Return what adapter and 4-bit base say together, the base's rounding kept."""
    from peft import PeftModel

    from finetune_trainer.model.build import load_base

    base = load_base(Path(base_folder(case)), dtype=torch.float32, quantization=Quantization()).dequantize()
    return logits(PeftModel.from_pretrained(base.float(), str(run / paths.ADAPTER)))


def test_large_weights_are_split_as_asked(tmp_path: Path) -> None:
    from finetune_trainer.outputs.merge import write_full

    model = tiny_model(tmp_path / "model", hidden_size=256, intermediate_size=512)
    write_full(model, tmp_path / "merged", settings=Merged(max_shard_size="1MB"))

    index = json.loads((tmp_path / "merged/model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in (tmp_path / "merged").glob("*.safetensors"))
    assert len(shards) > 1
    assert sorted(set(index["weight_map"].values())) == shards
    AutoModelForCausalLM.from_pretrained(tmp_path / "merged")


def test_gguf_is_listed_with_its_modelfile_and_needs_no_merged_weights_kept(tmp_path: Path) -> None:
    output = {"uri": f"file://{tmp_path}/out", "merged": {"enabled": False}, "gguf": {"types": ["f16"]}}
    case = make_case(tmp_path, model=tiny_llama(tmp_path / "model"), spec={"output": output}, total_steps=1)
    result = train(case).result

    assert sorted(result.artifacts) == ["adapter", "gguf"]
    assert sorted(path.name for path in (case.run / paths.GGUF).iterdir()) == ["Modelfile", "model-f16.gguf"]
    assert result.warnings == ()


def test_a_model_that_cannot_be_gguf_keeps_its_other_outputs(tmp_path: Path) -> None:
    output = {"uri": f"file://{tmp_path}/out", "gguf": {}}
    result = train(make_case(tmp_path, spec={"output": output}, total_steps=1)).result

    assert sorted(result.artifacts) == ["adapter", "merged"]
    (warning,) = result.warnings
    assert "output.gguf: nothing was written" in warning


def test_the_adapter_names_its_base_as_the_user_does(case: Case, outcome: Outcome) -> None:
    settings = json.loads((outcome.run / paths.ADAPTER / "adapter_config.json").read_text())

    assert settings["base_model_name_or_path"] == case.config.spec.model.uri
    assert settings["revision"]
    assert settings["r"] == 8
    assert settings["target_modules"] == sorted(settings["target_modules"])


@pytest.mark.parametrize("folder", [paths.ADAPTER, paths.MERGED])
def test_weights_come_with_the_tokenizer(case: Case, outcome: Outcome, folder: str) -> None:
    ours, base = (AutoTokenizer.from_pretrained(path) for path in (outcome.run / folder, base_folder(case)))
    turns = [{"role": "user", "content": "1 plus 2"}]

    assert ours.apply_chat_template(turns, tokenize=False) == base.apply_chat_template(turns, tokenize=False)


def test_no_output_names_this_machine_or_the_time(case: Case, outcome: Outcome) -> None:
    work = str(case.env.work)
    for path in outcome.run.rglob("*"):
        if path.suffix in (".json", ".md", ".html") and paths.CHECKPOINTS not in str(path):
            assert work not in path.read_text(), path


def test_an_export_cut_short_is_repeated_with_the_same_files(case: Case, outcome: Outcome) -> None:
    """The pod died after some uploads, before the manifest: the next attempt writes the same bytes."""
    before = {path: path.read_bytes() for path in _outputs(outcome.run)}
    created = Manifest.model_validate_json((outcome.run / paths.MANIFEST).read_bytes())
    (outcome.run / paths.MANIFEST).unlink()
    (outcome.run / paths.MERGED / "model.safetensors").unlink()

    again = train(case.attempt(2))

    # The page tells of this attempt's speed, evaluation.json of its resume; everything else is equal.
    after = {path: path.read_bytes() for path in _outputs(again.run)}
    different = {path.name for path in before if before[path] != after.get(path)}
    assert different <= {paths.EVALUATION, paths.REPORT}
    assert again.result.artifacts == created.artifacts


def _outputs(run: Path) -> list[Path]:
    skipped = (paths.CHECKPOINTS, paths.PREPARED_DIR)
    found = [path for path in run.rglob("*") if path.is_file() and path.name != paths.MANIFEST]
    return [path for path in found if path.relative_to(run).parts[0] not in skipped]


def test_a_manifest_written_meanwhile_by_the_same_run_counts(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two attempts at once, the zombie first: the later one takes its manifest instead of failing."""
    theirs = Manifest.model_validate_json((case.run / paths.MANIFEST).read_bytes())
    monkeypatch.setattr("finetune_trainer.train.completed_run", lambda *_: None)

    assert train(case.attempt(3)).result.artifacts == theirs.artifacts


def test_an_upload_of_another_size_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = FolderStore.upload

    def cut(self: FolderStore, path: Path, uri: str) -> str:
        digest = upload(self, path, uri)
        if uri.endswith("report.html"):
            self.write(uri, b"cut")
        return digest

    monkeypatch.setattr(FolderStore, "upload", cut)
    case = make_case(tmp_path, total_steps=2)

    with pytest.raises(TrainerError, match=r"report\.html") as failure:
        train(case)
    assert failure.value.code is ExitCode.STORAGE_UNAVAILABLE
    assert not (case.run / paths.MANIFEST).exists()


def test_a_complete_run_that_lost_a_file_is_not_returned(tmp_path: Path) -> None:
    case = make_case(tmp_path, total_steps=2)
    train(case)
    (case.run / paths.MERGED / "model.safetensors").unlink()

    with pytest.raises(TrainerError, match=r"merged/model.safetensors") as failure:
        train(case.attempt(2))
    assert failure.value.code is ExitCode.OUTPUT_EXISTS


def test_an_artifact_is_known_by_its_content() -> None:
    files = [OutputFile(path=f"adapter/{name}", sha256=name * 64, bytes=1) for name in "ab"]

    assert artifact("adapter", files) == artifact("adapter", files[::-1])
    listed = "".join(f"{name * 64}  adapter/{name}\n" for name in "ab")
    done = subprocess.run(["sha256sum"], input=listed.encode(), capture_output=True, check=True)
    assert artifact("adapter", files).sha256 == done.stdout.decode().split()[0]


class _Page(HTMLParser):
    """Collects tags, texts and whatever a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.fetched: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_shows_the_run_and_fetches_nothing(outcome: Outcome) -> None:
    source = (outcome.run / paths.REPORT).read_text()
    page = _Page()
    page.feed(source)

    assert {"svg", "polyline", "table", "meter"} <= page.tags
    assert not page.tags & {"script", "img", "link", "iframe"}
    assert page.fetched == []
    assert not re.search(r"url\(|@import", source)
    assert NASTY in page.text  # as text, not as a tag
    assert "<script>alert(1)</script>" in page.text  # the first example's
    assert "Only <29> examples" in page.text
    assert "<12>" in page.text  # an answer that several examples have
    assert "2 nearly equal to another" in page.text
    assert "a test" in page.text  # why a value was chosen


def test_the_model_card_tells_where_the_model_comes_from(case: Case, outcome: Outcome) -> None:
    import yaml

    card = (outcome.run / paths.MODEL_CARD).read_text()
    _, front, body = card.split("---\n", 2)

    assert yaml.safe_load(front)["tags"] == ["finetuned", "lora"]
    for fact in (case.config.spec.model.uri, case.config.spec.dataset.uri, case.config.config_hash, "torch 2.13"):
        assert fact in body
    assert export.MERGED_FROM in body
    assert "| Held-out loss |" in body


def test_the_versions_name_what_the_result_depends_on() -> None:
    assert {"torch", "transformers", "trl", "peft"} <= export.versions().keys()

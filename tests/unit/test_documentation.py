"""The tables of docs/operations.md say what the code and the manifests say."""

import re
from pathlib import Path

import yaml

from finetune_operator.settings import Settings

ROOT = Path(__file__).parents[2]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def rows(heading):
    """The cells of the table below a heading, without backticks."""
    section = OPERATIONS.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines]


def test_rights():
    documented = {
        (group, resource, verb)
        for group, resource, verbs, *_ in rows("Rights")
        for verb in verbs.replace(" ", "").split(",")
    }
    assert documented == granted()


def test_the_operator_may_touch_no_secret_but_its_own_and_no_config_map():
    """Everything that a pod is to be told stands in its annotations (job-traps 12)."""
    wanted = ("secrets", "configmaps", "*")
    assert {(resource, verb) for _, resource, verb in granted() if resource.split()[0] in wanted} == {
        ("secrets finetune-operator-tls", "get"),
        ("secrets finetune-operator-tls", "update"),
    }


def granted():
    files = [ROOT / "manifests" / "rbac" / name for name in ("clusterrole.yaml", "role.yaml")]
    roles = [item for file in files for item in yaml.safe_load_all(file.read_text()) if "rules" in item]
    return {
        (group or "core", f"{resource} {' '.join(rule.get('resourceNames', []))}".strip(), verb)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_settings():
    source = (ROOT / "operator" / "finetune_operator" / "settings.py").read_text()
    read = set(re.findall(r'"((?:FINETUNE|POD)_[A-Z_]+)"', source))
    documented = {name: default for name, default, *_ in rows("Settings")}
    assert documented.keys() == read
    spelled_out = {name: default for name, default in documented.items() if default not in ("none", "see text")}
    assert Settings.from_env(spelled_out) == Settings.from_env({})


def test_values_of_the_chart():
    values = yaml.safe_load((ROOT / "charts" / "finetune-operator" / "values.yaml").read_text())
    assert {name.partition(".")[0] for name, *_ in rows("Values of the chart")} == set(values)

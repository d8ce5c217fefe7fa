from __future__ import annotations

import importlib
import importlib.util
import json
import os
import pkgutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import distribution, entry_points, version
from pathlib import Path
from typing import Any

import airflow
import jsonschema
import pytest
from airflow.providers.common.compat.sdk import BaseHook, BaseOperator, BaseOperatorLink, BaseSensorOperator
from airflow.triggers.base import BaseTrigger
from packaging.version import Version

import airflow_provider_kling
from airflow_provider_kling import get_provider_info
from airflow_provider_kling.api.protocol import DEFAULT_BASE_URL
from airflow_provider_kling.hooks.kling import KlingHook
from airflow_provider_kling.hooks.settings import (
    DEFAULT_CONNECT_TIMEOUT,
    DEFAULT_READ_TIMEOUT,
    ConnectionSettings,
)
from airflow_provider_kling.waiting import MAX_FAILURES

NAME = "airflow-provider-kling"
OF_AIRFLOW = Path(airflow.__file__).parent
[CONNECTION_TYPE] = get_provider_info()["connection-types"]


def schema(name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((OF_AIRFLOW / name).read_text())
    return read


# Airflow's own rules for it


def test_airflow_finds_the_provider_in_a_form_that_it_takes() -> None:
    jsonschema.validate(get_provider_info(), schema("provider_info.schema.json"))
    [entry] = [
        each
        for each in entry_points(group="apache_airflow_provider")
        if each.module == "airflow_provider_kling"
    ]
    assert entry.load() is get_provider_info
    assert entry.dist is not None
    assert entry.dist.name == NAME


def test_it_keeps_to_the_rules_for_airflows_own_providers() -> None:
    """These are stricter; what they demand of a provider's releases and files does not apply."""
    rules = schema("provider.yaml.schema.json")
    if "conn-fields" not in json.dumps(rules["properties"]["connection-types"]):
        pytest.skip("this Airflow does not know forms that are data yet")
    rules["required"] = []
    jsonschema.validate(get_provider_info(), rules)


def test_the_form_keeps_to_the_rules_of_older_airflows() -> None:
    jsonschema.validate(
        KlingHook.get_ui_field_behaviour(), schema("customized_form_field_behaviours.schema.json")
    )


def test_airflow_itself_registers_it() -> None:
    from airflow.providers_manager import ProvidersManager

    manager = ProvidersManager()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        provider = manager.providers[NAME]
        hook = manager.hooks["kling"]
        links = manager.extra_links_class_names
    assert provider.version == airflow_provider_kling.__version__
    assert hook is not None
    assert (hook.hook_name, hook.package_name) == ("Kling Omni-Video", NAME)
    assert hook.connection_id_attribute_name == "kling_conn_id"
    assert hook.connection_testable
    assert "airflow_provider_kling.links.kling.KlingVideoLink" in links


def test_airflows_form_has_every_field() -> None:
    """Asked in a process of its own: Airflow 3.1 puts stand-ins for the form's library into the one that asks."""
    if importlib.util.find_spec("airflow.api_fastapi"):
        form = run_python(
            "from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService as forms\n"
            "print(*[form.model_dump_json() for form in forms.hook_meta_data() if form.connection_type == 'kling'])"
        )
        if form["standard_fields"] is None and version("apache-airflow").startswith("3.0."):
            pytest.skip("Airflow 3.0 shows no provider's fields without the form's library")
        titles = {name: field["title"] for name, field in form["standard_fields"].items() if field}
        fields = form["extra_fields"]
    else:
        form = run_python(
            "import json\n"
            "from airflow.providers_manager import ProvidersManager\n"
            "widgets = ProvidersManager().connection_form_widgets.values()\n"
            f"ours = [widget.field_name for widget in widgets if widget.package_name == {NAME!r}]\n"
            "print(json.dumps([ProvidersManager().field_behaviours['kling'], ours]))"
        )
        titles, fields = form[0]["relabeling"], form[1]
    assert (titles["password"], titles["host"]) == ("API key", "Base URL")
    assert sorted(fields) == sorted(CONNECTION_TYPE["conn-fields"])


# What it names is there

KINDS: dict[str, type] = {
    "operators": BaseOperator,
    "sensors": BaseSensorOperator,
    "hooks": BaseHook,
    "triggers": BaseTrigger,
}


def modules_named(kind: str) -> Iterator[str]:
    for entry in get_provider_info()[kind]:
        yield from entry["python-modules"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_module_that_it_names_offers_what_it_says(kind: str) -> None:
    for name in modules_named(kind):
        assert offers(name, KINDS[kind])


def offers(name: str, kind: type) -> bool:
    module = importlib.import_module(name)
    own = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == name]
    return any(issubclass(each, kind) for each in own)


@pytest.mark.parametrize("kind", ["operators", "sensors", "triggers", "links"])
def test_no_module_is_forgotten(kind: str) -> None:
    package = importlib.import_module(f"airflow_provider_kling.{kind}")
    there = {f"{package.__name__}.{each.name}" for each in pkgutil.iter_modules(package.__path__)}
    if kind == "links":
        named = {path.rpartition(".")[0] for path in get_provider_info()["extra-links"]}
    else:
        named = set(modules_named(kind))
        there = {name for name in there if offers(name, KINDS[kind])}
    assert there == named


def class_at(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_every_class_that_it_names_is_there() -> None:
    assert class_at(CONNECTION_TYPE["hook-class-name"]) is KlingHook
    for path in get_provider_info()["extra-links"]:
        assert issubclass(class_at(path), BaseOperatorLink)


def test_everything_belongs_to_an_integration_that_it_names() -> None:
    info = get_provider_info()
    named = {each["integration-name"] for each in info["integrations"]}
    assert {each["integration-name"] for kind in KINDS for each in info[kind]} == named


def test_it_is_what_the_distribution_says() -> None:
    info = get_provider_info()
    assert info["package-name"] == NAME == distribution(NAME).metadata["Name"]
    assert airflow_provider_kling.__version__ == version(NAME)
    assert all(
        Version(option["version_added"]) <= Version(version(NAME))
        for section in info["config"].values()
        for option in section["options"].values()
    )


def test_whoever_changes_the_answer_changes_his_own() -> None:
    get_provider_info()["connection-types"].clear()
    get_provider_info()["config"]["kling"]["options"].clear()
    assert get_provider_info()["connection-types"]
    assert get_provider_info()["config"]["kling"]["options"]


# The connection's form


def test_it_says_of_the_hook_what_the_hook_says() -> None:
    assert CONNECTION_TYPE["connection-type"] == KlingHook.conn_type
    assert CONNECTION_TYPE["hook-name"] == KlingHook.hook_name


def test_older_airflows_get_the_same_behaviour_of_the_form() -> None:
    new = CONNECTION_TYPE["ui-field-behaviour"]
    assert KlingHook.get_ui_field_behaviour() == {
        "hidden_fields": new["hidden-fields"],
        "relabeling": new["relabeling"],
        "placeholders": new["placeholders"],
    }


def test_older_airflows_get_the_same_fields() -> None:
    pytest.importorskip("flask_appbuilder", reason="only Airflow 3.1 and older bring the form's library")
    from wtforms import BooleanField, Form, StringField

    widgets = KlingHook.get_connection_form_widgets()
    assert list(widgets) == list(CONNECTION_TYPE["conn-fields"])
    form = type("AForm", (Form,), widgets)()
    for name, field in CONNECTION_TYPE["conn-fields"].items():
        shown = form[name]
        assert str(shown.label.text) == field["label"]
        assert shown.description == field["description"]
        is_boolean = field["schema"]["type"] == "boolean"
        assert type(shown) is (BooleanField if is_boolean else StringField)
        assert shown.default == field["schema"].get("default")


def test_the_form_offers_exactly_what_the_connection_can_say() -> None:
    own = {"conn_id", "conn_type", "base_url", "key", "price_changes"}
    settable = set(ConnectionSettings.__dataclass_fields__) - own | {"ca_bundle", "prices"}
    assert set(CONNECTION_TYPE["conn-fields"]) == settable


def test_the_form_tells_the_defaults() -> None:
    fields = CONNECTION_TYPE["conn-fields"]
    assert f"{DEFAULT_CONNECT_TIMEOUT:.0f} unless set" in fields["connect_timeout"]["description"]
    assert f"{DEFAULT_READ_TIMEOUT:.0f} unless set" in fields["read_timeout"]["description"]
    assert CONNECTION_TYPE["ui-field-behaviour"]["placeholders"]["host"] == DEFAULT_BASE_URL


def test_the_settings_tell_their_defaults() -> None:
    options = get_provider_info()["config"]["kling"]["options"]
    assert options["max_failed_queries"]["default"] == str(MAX_FAILURES)


# What importing it costs


def run_python(code: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_every_process_of_airflow_can_import_it_for_nothing() -> None:
    loaded = run_python(
        "import json, sys; before = set(sys.modules); import airflow_provider_kling as it; it.get_provider_info();"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    assert {name.partition(".")[0] for name in loaded} <= {"airflow_provider_kling", *sys.stdlib_module_names}


def test_a_dag_that_imports_the_operators_loads_no_http_library() -> None:
    airflows = "airflow.sdk" if importlib.util.find_spec("airflow.sdk") else "airflow.models"
    loaded = run_python(
        f"import json, sys, {airflows}, airflow.triggers.base, airflow.providers.common.compat.sdk as sdk;"
        "sdk.BaseOperator, sdk.BaseSensorOperator, sdk.BaseHook; before = set(sys.modules);"
        "import airflow_provider_kling.operators.kling, airflow_provider_kling.sensors.kling;"
        "import airflow_provider_kling.triggers.kling;"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    assert "airflow_provider_kling.triggers.kling" in loaded
    assert not {"aiohttp", "requests", "urllib3"} & set(loaded)

#!/usr/bin/env python3
"""Makes the tables of facts beside it from the published schemas.

    pip download --no-deps ocsf-json-schema==1.2.0      # a wheel, which holds the schema of OCSF 1.3.0
    npm pack @elastic/ecs@8.11.5                        # an archive, made from ECS 8.11.0
    ./make.py FOLDER                                    # the folder with both

Only what a record can be checked against is taken: names, types, requirements, numbers, allowed words.
"""

import json
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile

HERE = pathlib.Path(__file__).parent

# What the agent's records use. A record that uses another one fails the test until it is listed here.
OCSF = "1.3.0"
CLASSES = ["process_activity", "module_activity", "kernel_extension"]
OBJECTS = [
    "actor", "authorization", "device", "file", "fingerprint", "kernel_driver", "logger", "metadata",
    "module", "policy", "process", "product", "user",
]
ECS = "8.11.0"
# Field sets, and how many names deep.
FIELD_SETS = {
    "base": 1, "ecs": 2, "event": 2, "file": 2, "file.hash": 3, "host": 2, "observer": 2, "process": 2,
    "process.parent": 3, "process.thread": 3, "rule": 2, "user": 2,
}


def ocsf(folder):
    [wheel] = folder.glob("ocsf_json_schema-1.2.0-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        schema = json.loads(archive.read(f"ocsf_json_schema/ocsf/{OCSF}.json"))
    assert schema["version"] == OCSF
    yield f"# Facts of the Open Cybersecurity Schema Framework {OCSF} (https://github.com/ocsf/ocsf-schema,"
    yield "# Apache License 2.0), made by make.py. An attribute is: owner, name, type (of an object its kind,"
    yield "# [] if there can be several), requirement, profile that it belongs to, allowed values."
    used = set()
    owners = [("class", "base_event", schema["base_event"])]
    owners += [("class", name, schema["classes"][name]) for name in CLASSES]
    owners += [("object", name, schema["objects"][name]) for name in OBJECTS]
    for kind, name, owner in owners:
        if kind == "class":
            yield "\t".join(["class", name, str(owner.get("uid", 0)), ",".join(sorted(owner["profiles"]))])
        else:
            yield f"object\t{name}"
        for rule, names in (owner.get("constraints") or {}).items():
            yield "\t".join([rule, name, ",".join(names)])
        for attribute, fact in sorted(owner["attributes"].items()):
            type_name = fact.get("object_type", fact["type"])
            if "object_type" not in fact:
                used.add(type_name)
            several = "[]" if fact.get("is_array") else ""
            values = ",".join(sorted(fact.get("enum", {}), key=int)) or "-"
            profile = fact.get("profile") or "-"
            yield "\t".join(["attribute", name, attribute, type_name + several, fact["requirement"],
                             profile, values])
    for name in sorted(used):
        fact = schema["types"][name]
        yield "\t".join(["type", name, fact.get("type", name), str(fact.get("max_len", "-"))])


def ecs(folder):
    [package] = folder.glob("elastic-ecs-8.11.5.tgz")
    with tempfile.TemporaryDirectory() as unpacked:
        with tarfile.open(package) as archive:
            archive.extractall(unpacked, filter="data")
        generated = f"{unpacked}/package/generated"
        assert f"version: '{ECS}'" in pathlib.Path(f"{generated}/ecs.ts").read_text()
        script = f"JSON.stringify(require('{generated}/ecs_flat.js').EcsFlat)"
        fields = json.loads(subprocess.check_output(["node", "-p", script]))
    yield f"# Facts of the Elastic Common Schema {ECS} (https://github.com/elastic/ecs, Apache License 2.0),"
    yield "# made by make.py. A field is: name, type ([] if it is a list), whether it is required, allowed"
    yield "# words. A category has the types that are expected with it. The field sets are all that there are."
    for name in sorted({name.split(".")[0] for name in fields if "." in name}):
        yield f"set\t{name}"
    for name, fact in sorted(fields.items()):
        parent = name.rpartition(".")[0] or "base"
        if FIELD_SETS.get(parent) != name.count(".") + 1:
            continue
        several = "[]" if "array" in fact["normalize"] else ""
        words = ",".join(value["name"] for value in fact.get("allowed_values", [])) or "-"
        required = "required" if fact.get("required") else "optional"
        yield "\t".join(["field", name, fact["type"] + several, required, words])
    for category in fields["event.category"]["allowed_values"]:
        yield "\t".join(["category", category["name"], ",".join(category["expected_event_types"])])


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    for name, lines in [(f"ocsf-{OCSF}.tsv", ocsf(folder)), (f"ecs-{ECS}.tsv", ecs(folder))]:
        (HERE / name).write_text("\n".join(lines) + "\n")

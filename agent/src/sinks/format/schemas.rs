//! Every kind of record against the facts of the published schemas, which `tests/schemas/make.py` takes out of
//! them.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::Format;
use crate::event::samples;

/// The lines of a table: columns between tabs.
fn lines(table: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    let lines = table.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split('\t').collect())
}

/// The words of a column; none if there are none to choose from.
fn words(column: &'static str) -> Vec<&'static str> {
    if column == "-" { vec![] } else { column.split(',').collect() }
}

/// A mistake, and where.
type Mistakes = BTreeSet<String>;

struct Attribute {
    kind: &'static str,
    is_list: bool,
    is_required: bool,
    profile: Option<&'static str>,
    values: Vec<&'static str>,
}

#[derive(Default)]
struct Ocsf {
    /// By number: name, and the profiles that may be applied.
    classes: BTreeMap<u64, (&'static str, Vec<&'static str>)>,
    /// Of classes and objects.
    attributes: BTreeMap<&'static str, BTreeMap<&'static str, Attribute>>,
    at_least_one: BTreeMap<&'static str, Vec<&'static str>>,
    /// What it is made of, and how long it may be.
    types: BTreeMap<&'static str, (&'static str, Option<usize>)>,
}

impl Ocsf {
    fn read() -> Self {
        let mut facts = Self::default();
        for line in lines(include_str!("../../../tests/schemas/ocsf-1.3.0.tsv")) {
            match line[..] {
                ["class", name, uid, profiles] => {
                    let uid = uid.parse().expect("a number");
                    facts.classes.insert(uid, (name, words(profiles)));
                }
                ["object", name] => drop(facts.attributes.entry(name).or_default()),
                ["at_least_one", owner, names] => {
                    facts.at_least_one.insert(owner, words(names));
                }
                ["attribute", owner, name, kind, requirement, profile, values] => {
                    let attribute = Attribute {
                        kind: kind.trim_end_matches("[]"),
                        is_list: kind.ends_with("[]"),
                        is_required: requirement == "required",
                        profile: (profile != "-").then_some(profile),
                        values: words(values),
                    };
                    facts.attributes.entry(owner).or_default().insert(name, attribute);
                }
                ["type", name, made_of, longest] => {
                    facts.types.insert(name, (made_of, longest.parse().ok()));
                }
                _ => panic!("{line:?} is not understood"),
            }
        }
        facts
    }

    /// What is wrong with a record.
    fn mistakes(&self, record: &Value) -> Mistakes {
        let mut found = Mistakes::new();
        let number = |name: &str| record[name].as_u64().unwrap_or(u64::MAX);
        let Some((class, may)) = self.classes.get(&number("class_uid")) else {
            found.insert(format!("no class {}", record["class_uid"]));
            return found;
        };
        if record["metadata"]["version"] != "1.3.0" {
            found.insert(format!("metadata.version {}", record["metadata"]["version"]));
        }
        let listed = record["metadata"]["profiles"].as_array();
        let profiles: Vec<_> = listed.into_iter().flatten().filter_map(Value::as_str).collect();
        for profile in profiles.iter().filter(|profile| !may.contains(profile)) {
            found.insert(format!("{class} has no profile {profile}"));
        }
        if number("type_uid") != number("class_uid") * 100 + number("activity_id") {
            found.insert(format!(
                "type_uid {} is not of its class and activity",
                record["type_uid"]
            ));
        }
        // What is none of those that are listed has to be named.
        if number("activity_id") == 99 && !record["activity_name"].is_string() {
            found.insert("activity_id 99 without activity_name".into());
        }
        self.object(class, class, record, &profiles, &mut found);
        found
    }

    fn object(
        &self,
        owner: &str,
        place: &str,
        value: &Value,
        profiles: &[&str],
        found: &mut Mistakes,
    ) {
        let Some(members) = value.as_object() else {
            found.insert(format!("{place} is no object"));
            return;
        };
        // Which only we know what it holds.
        if owner == "object" {
            return;
        }
        let Some(attributes) = self.attributes.get(owner) else {
            found.insert(format!("{place}: {owner} is not in the table; add it to make.py"));
            return;
        };
        let applies = |attribute: &Attribute| {
            attribute.profile.is_none_or(|profile| profiles.contains(&profile))
        };
        for (name, attribute) in attributes {
            if attribute.is_required && applies(attribute) && !members.contains_key(*name) {
                found.insert(format!("{place}.{name} is required"));
            }
        }
        if let Some(names) = self.at_least_one.get(owner)
            && !names.iter().any(|name| members.contains_key(*name))
        {
            found.insert(format!("{place} has none of {}", names.join(", ")));
        }
        for (name, value) in members {
            let place = format!("{place}.{name}");
            let Some(attribute) = attributes.get(&**name) else {
                found.insert(format!("{place} is no attribute of {owner}"));
                continue;
            };
            if !applies(attribute) {
                found.insert(format!("{place} is of a profile that is not applied"));
            }
            match (attribute.is_list, value.as_array()) {
                (true, Some(values)) => {
                    for value in values {
                        self.value(attribute, &place, value, profiles, found);
                    }
                }
                (false, None) => self.value(attribute, &place, value, profiles, found),
                (true, None) => drop(found.insert(format!("{place} is no list"))),
                (false, Some(_)) => drop(found.insert(format!("{place} is a list"))),
            }
        }
    }

    fn value(
        &self,
        attribute: &Attribute,
        place: &str,
        value: &Value,
        profiles: &[&str],
        found: &mut Mistakes,
    ) {
        let Some((made_of, longest)) = self.types.get(attribute.kind) else {
            self.object(attribute.kind, place, value, profiles, found);
            return;
        };
        let fits = match *made_of {
            "string_t" => value.as_str().is_some_and(|text| {
                longest.is_none_or(|longest| text.chars().count() <= longest)
                    && (attribute.kind != "hostname_t" || is_host_name(text))
            }),
            "integer_t" | "long_t" => value.is_i64() || value.is_u64(),
            "boolean_t" => value.is_boolean(),
            other => panic!("the test does not know the type {other}"),
        };
        if !fits {
            found.insert(format!("{place}: {value} is no {}", attribute.kind));
        }
        let values = &attribute.values;
        if !values.is_empty() && !values.contains(&&*value.to_string()) {
            found.insert(format!("{place}: {value} is none of {}", values.join(", ")));
        }
    }
}

/// Labels of letters and digits with hyphens within, as the schema's expression for the type asks.
fn is_host_name(text: &str) -> bool {
    text.split('.').all(|label| {
        let is_inner = |character: char| character.is_ascii_alphanumeric() || character == '-';
        !label.is_empty()
            && label.chars().all(is_inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    })
}

#[derive(Default)]
struct Ecs {
    sets: BTreeSet<&'static str>,
    fields: BTreeMap<&'static str, Attribute>,
    /// The types of events that are expected of a category.
    categories: BTreeMap<&'static str, Vec<&'static str>>,
}

impl Ecs {
    fn read() -> Self {
        let mut facts = Self::default();
        for line in lines(include_str!("../../../tests/schemas/ecs-8.11.0.tsv")) {
            match line[..] {
                ["set", name] => drop(facts.sets.insert(name)),
                ["field", name, kind, requirement, values] => {
                    let field = Attribute {
                        kind: kind.trim_end_matches("[]"),
                        is_list: kind.ends_with("[]"),
                        is_required: requirement == "required",
                        profile: None,
                        values: words(values),
                    };
                    facts.fields.insert(name, field);
                }
                ["category", name, types] => drop(facts.categories.insert(name, words(types))),
                _ => panic!("{line:?} is not understood"),
            }
        }
        facts
    }

    /// What is wrong with a record.
    fn mistakes(&self, record: &Value) -> Mistakes {
        let mut found = Mistakes::new();
        let mut present = BTreeSet::new();
        if let Some(members) = record.as_object() {
            self.members("", members, &mut present, &mut found);
        }
        let required = self.fields.iter().filter(|(_, field)| field.is_required);
        for (name, _) in required.filter(|(name, _)| !present.contains(**name)) {
            found.insert(format!("{name} is required"));
        }
        if record["ecs"]["version"] != "8.11.0" {
            found.insert(format!("ecs.version {}", record["ecs"]["version"]));
        }
        let list = |name: &str| -> Vec<_> {
            let values = record["event"][name].as_array();
            values.into_iter().flatten().filter_map(Value::as_str).collect()
        };
        let (categories, types) = (list("category"), list("type"));
        let fits = |kind: &str, category: &str| {
            self.categories.get(category).is_some_and(|expected| expected.contains(&kind))
        };
        for kind in types.iter().filter(|kind| !categories.iter().any(|one| fits(kind, one))) {
            found.insert(format!("event.type {kind} is expected with none of {categories:?}"));
        }
        for one in categories.iter().filter(|one| !types.iter().any(|kind| fits(kind, one))) {
            found.insert(format!("event.category {one} is expected with none of {types:?}"));
        }
        found
    }

    fn members(
        &self,
        prefix: &str,
        members: &Map<String, Value>,
        present: &mut BTreeSet<String>,
        found: &mut Mistakes,
    ) {
        if members.is_empty() {
            found.insert(format!("{prefix} is empty"));
        }
        for (name, value) in members {
            let place = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            // What is ours: one name, which ECS does not have.
            if place == "portcullis" && !self.sets.contains(&*place) {
                continue;
            }
            match (self.fields.get(&*place), value) {
                (Some(field), value) => {
                    Self::value(field, &place, value, found);
                    present.insert(place);
                }
                (None, Value::Object(members)) => self.members(&place, members, present, found),
                (None, _) => drop(found.insert(format!("{place} is no field"))),
            }
        }
    }

    fn value(field: &Attribute, place: &str, value: &Value, found: &mut Mistakes) {
        let values = match (field.is_list, value) {
            (true, Value::Array(values)) => &values[..],
            (false, value) if !value.is_array() => std::slice::from_ref(value),
            _ => {
                found.insert(format!("{place}: a list where there is none, or none where one is"));
                return;
            }
        };
        for value in values {
            let fits = match field.kind {
                "keyword" | "match_only_text" | "wildcard" => value.is_string(),
                "long" => {
                    value.is_i64() || value.as_u64().is_some_and(|it| i64::try_from(it).is_ok())
                }
                "date" => value.as_str().is_some_and(|it| it.parse::<Timestamp>().is_ok()),
                "boolean" => value.is_boolean(),
                "float" => value.is_number(),
                "object" => value.is_object(),
                other => panic!("the test does not know the type {other}"),
            };
            let is_allowed = field.values.is_empty()
                || field.values.contains(&value.as_str().unwrap_or_default());
            if !fits || !is_allowed {
                found.insert(format!("{place}: {value} is no {} {:?}", field.kind, field.values));
            }
        }
    }
}

/// Whose nodename no host name may be, as nobody has set it.
const HOSTS: [&str; 3] = ["pump-3.plant.example", "(none)", "under_score"];

fn written(format: Format, host: &str) -> Vec<Value> {
    let events = samples::every();
    let texts = events.iter().map(|event| format.write("", event, host));
    texts.map(|text| serde_json::from_str(&text).expect("JSON")).collect()
}

/// The mistakes in every record, with the kinds of records that have them.
fn of_all(format: Format, mistakes: impl Fn(&Value) -> Mistakes) -> BTreeMap<String, Mistakes> {
    let mut all = BTreeMap::<String, Mistakes>::new();
    for record in HOSTS.iter().flat_map(|host| written(format, host)) {
        let own = if format == Format::Ecs { &record } else { &record["unmapped"] };
        let kind = format!("{} {}", own["portcullis"]["type"], own["portcullis"]["gate"]);
        for mistake in mistakes(&record) {
            all.entry(mistake).or_default().insert(kind.clone());
        }
    }
    all
}

#[test]
fn every_record_fits_ocsf() {
    let facts = Ocsf::read();
    let mistakes = of_all(Format::Ocsf, |record| facts.mistakes(record));
    assert!(mistakes.is_empty(), "{mistakes:#?}");
}

#[test]
fn every_record_fits_ecs() {
    let facts = Ecs::read();
    let mistakes = of_all(Format::Ecs, |record| facts.mistakes(record));
    assert!(mistakes.is_empty(), "{mistakes:#?}");
}

/// Breaks a member of a record, and returns what is found.
fn broken(format: Format, pointer: &str, value: Option<Value>) -> Mistakes {
    let mut record = written(format, HOSTS[0]).swap_remove(0);
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
    let parent = record.pointer_mut(parent).and_then(Value::as_object_mut).expect("an object");
    match value {
        Some(value) => drop(parent.insert(name.into(), value)),
        None => drop(parent.remove(name).expect("it was there")),
    }
    match format {
        Format::Ecs => Ecs::read().mistakes(&record),
        _ => Ocsf::read().mistakes(&record),
    }
}

#[test]
fn what_does_not_fit_is_found() {
    for (pointer, value) in [
        ("/class_uid", Some(4_242.into())),
        ("/activity_id", Some(2.into())),
        ("/activity_id", Some(42.into())),
        ("/severity_id", Some(7.into())),
        ("/severity_id", Some("3".into())),
        ("/time", None),
        ("/policy", Some(serde_json::json!({ "name": "at the wrong place" }))),
        ("/metadata/version", Some("1.4.0".into())),
        ("/metadata/profiles", Some(serde_json::json!(["host"]))),
        ("/metadata/profiles", Some(serde_json::json!(["host", "security_control", "win"]))),
        ("/metadata/product/vendor_name", None),
        ("/actor/process/user/uid", None),
        ("/actor/process/pid", Some("812".into())),
        ("/process/file/hashes/0/algorithm_id", Some(8.into())),
        ("/process/file/hashes", Some(serde_json::json!({}))),
        ("/process/file/hashes/0/value", Some("ab".repeat(33).into())),
        ("/device/hostname", Some("(none)".into())),
    ] {
        let found = broken(Format::Ocsf, pointer, value.clone());
        assert!(!found.is_empty(), "{pointer} {value:?} passes");
    }
    for (pointer, value) in [
        ("/@timestamp", None),
        ("/@timestamp", Some("today".into())),
        ("/ecs/version", Some("9.0.0".into())),
        ("/event/kind", Some("refusal".into())),
        ("/event/category", Some("process".into())),
        ("/event/type", Some(serde_json::json!(["deletion"]))),
        ("/event/severity", Some("4".into())),
        ("/user/id", Some(1000.into())),
        ("/gate", Some("exec".into())),
        ("/process/gate", Some("exec".into())),
    ] {
        let found = broken(Format::Ecs, pointer, value.clone());
        assert!(!found.is_empty(), "{pointer} {value:?} passes");
    }
}

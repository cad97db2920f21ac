//! One of USBGuard's rules as rules of a policy.
//!
//! A rule that allows becomes rules that let in the same devices or fewer, or none; a rule that keeps
//! devices out becomes rules that keep out the same devices or more.

use super::{
    here::Seen,
    language::{Id, Operator, Set, Target, Written},
};
use crate::usb::{
    device::{Connect, is_port},
    rules::{Action, Interfaces, Pattern, Port, Rule},
};

/// Rules that are made of one at most.
const MOST: usize = 256;

/// What is known besides the rules.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The devices that are plugged in here.
    pub here: &'a [Seen],
    /// Whether a hash of what a device is plugged in at is carried over as the ports that it has now.
    pub parents_as_ports: bool,
}

/// What becomes of a rule.
#[derive(Debug, PartialEq, Eq)]
pub enum Carried {
    /// Rules, and what they leave out of it. One that is about all devices stands alone.
    Rules(Vec<Rule>, Vec<String>),
    /// It is about a root hub, which belongs to the machine: no policy judges it.
    Controller,
    /// Nothing, because of this.
    Nothing(String),
}

/// An attribute: which devices it means.
enum Part<T> {
    Any,
    These(Vec<T>),
    None(String),
    Lost(String),
}

impl<T> Part<T> {
    fn map<U>(self, each: impl Fn(T) -> Option<U>, none: &str) -> Part<U> {
        match self {
            Self::Any => Part::Any,
            Self::None(why) => Part::None(why),
            Self::Lost(why) => Part::Lost(why),
            Self::These(values) => {
                let values: Vec<_> = values.into_iter().filter_map(each).collect();
                if values.is_empty() { Part::None(none.into()) } else { Part::These(values) }
            }
        }
    }
}

/// Carries one rule over.
#[must_use]
pub fn carry(written: &Written, known: Known<'_>) -> Carried {
    let allows = written.target == Target::Allow;
    let action = match written.target {
        Target::Allow => Action::Allow,
        Target::Block => Action::Hold,
        Target::Reject => Action::Reject,
    };
    let mut lost = Vec::new();
    let mut base = Rule::new(action, written.line);
    /// Takes an attribute's values, leaves the attribute out, or ends.
    macro_rules! values {
        ($part:expr) => {
            match $part {
                Part::Any => None,
                Part::These(values) => Some(values),
                Part::None(why) => return Carried::Nothing(why),
                Part::Lost(why) if allows => return Carried::Nothing(why),
                Part::Lost(why) => {
                    lost.push(why);
                    None
                }
            }
        };
    }
    if is_controller(written, known) {
        return Carried::Controller;
    }
    if let Some(conditions) = &written.conditions {
        let shown = String::from_utf8_lossy(&conditions.values.join(&b' ')).into_owned();
        values!(Part::<()>::Lost(format!(
            "has a condition (`if {shown}`), and rules here hold at all times; `at_most` limits how many \
             devices a rule lets in at a time"
        )));
    }
    let ports = values!(ports(written.port.as_ref()));
    let parents = values!(parents(written, known));
    base.port = match (ports, parents) {
        (Some(ports), Some(parents)) => {
            let both: Vec<_> = ports.into_iter().filter(|port| parents.contains(port)).collect();
            if both.is_empty() {
                return Carried::Nothing("means ports of another hub than `parent-hash`".into());
            }
            both
        }
        (ports, parents) => ports.or(parents).unwrap_or_default(),
    }
    .into_iter()
    .map(Port)
    .collect();
    base.connect = values!(connects(written.connect.as_ref(), allows)).unwrap_or_default();
    base.interfaces =
        values!(interfaces(written.interfaces.as_ref(), allows)).and_then(|mut one| one.pop());

    let ids = values!(ids(written.id.as_ref(), allows));
    let serials = values!(utf8(written.serial.as_ref(), "serial"));
    let names = values!(utf8(written.name.as_ref(), "name"));
    let mut made = vec![base];
    with(&mut made, ids, |rule, id| rule.id = Some(id));
    with(&mut made, serials, |rule, serial| rule.serial = Some(serial));
    with(&mut made, names, |rule, name| rule.name = Some(name));
    if let Some(hashes) = values!(texts(written.hash.as_ref(), "hash")) {
        let (found, missing) = by_hashes(&made, &hashes, known.here);
        // One that keeps out less than before would let in more.
        if missing.is_empty() || allows {
            made = found;
        }
        if allows && made.is_empty() && !missing.is_empty() {
            return Carried::Nothing(missing.join("; "));
        }
        lost.extend(missing);
    }
    let asks_for_kinds = made.iter().any(|rule| rule.interfaces.is_some());
    if allows && asks_for_kinds && written.interfaces.as_ref().is_some_and(overlap) {
        lost.push(
            "has kinds of interface that mean the same, among which other kinds may be to USBGuard; here \
             they may not"
                .into(),
        );
    }
    if made.is_empty() {
        return Carried::Nothing("means no device".into());
    }
    if made.len() > MOST {
        return Carried::Nothing(format!("would become {} rules; write it by hand", made.len()));
    }
    Carried::Rules(made, lost)
}

/// Whether a rule can only be about root hubs.
fn is_controller(written: &Written, known: Known<'_>) -> bool {
    let of = |set: &Option<Set<Vec<u8>>>, test: &dyn Fn(&[u8]) -> bool| {
        set.as_ref().is_some_and(|set| {
            set.operator != Operator::NoneOf && set.values.iter().all(|value| test(value))
        })
    };
    let is_root = |value: &[u8]| {
        value.strip_prefix(b"usb").is_some_and(|number| number.iter().all(u8::is_ascii_digit))
    };
    let is_hash = |value: &[u8]| {
        let mut same = known.here.iter().filter(|seen| seen.hash.as_bytes() == value).peekable();
        same.peek().is_some() && same.all(Seen::is_controller)
    };
    // Only that; a device can say that it is the like, so that a rule which keeps it out is needed.
    let by_number = || {
        let Some(Set { operator: Operator::Equals, values }) = &written.id else { return false };
        let is_hub = written.interfaces.as_ref().is_some_and(|set| {
            set.operator == Operator::Equals
                && set.values.iter().all(|Pattern([class, ..])| *class == Some(9))
        });
        written.target == Target::Allow
            && is_hub
            && values
                .iter()
                .all(|id| id.vendor == Some(0x1d6b) && matches!(id.product, Some(1..=3)))
    };
    of(&written.port, &is_root) || of(&written.hash, &is_hash) || by_number()
}

/// The alternatives of an attribute of which a device has one value.
fn texts(set: Option<&Set<Vec<u8>>>, what: &str) -> Part<Vec<u8>> {
    let Some(Set { operator, values }) = set else { return Part::Any };
    match (operator, &values[..]) {
        (Operator::NoneOf, _) => {
            Part::Lost(format!("has `{what} none-of`, which no rule here has"))
        }
        (Operator::OneOf | Operator::MatchAll, _) => {
            let mut values = values.clone();
            values.sort();
            values.dedup();
            Part::These(values)
        }
        (Operator::AllOf, [first, rest @ ..]) if rest.iter().all(|one| one == first) => {
            Part::These(vec![first.clone()])
        }
        (Operator::Equals | Operator::EqualsOrdered, [one]) => Part::These(vec![one.clone()]),
        _ => Part::None(format!("asks for more than one `{what}`, and every device has one")),
    }
}

fn utf8(set: Option<&Set<Vec<u8>>>, what: &str) -> Part<String> {
    let none = format!("has a `{what}` that is no text: such devices are always held");
    texts(set, what).map(|value| String::from_utf8(value).ok(), &none)
}

fn ids(set: Option<&Set<Id>>, allows: bool) -> Part<(u16, Option<u16>)> {
    let Some(Set { operator, values: written }) = set else { return Part::Any };
    // USBGuard compares what is written with what the kernel writes, which has no capitals: no device has such
    // an id, but it may have another of the set, and has none of them where that is asked for.
    let values: Vec<_> = written.iter().filter(|id| !id.capitals).copied().collect();
    if values.len() < written.len() {
        let why = "has an id with capital letters, which means no device to USBGuard; write it small if \
                   it is meant";
        match operator {
            _ if allows => return Part::Lost(why.into()),
            Operator::NoneOf if values.is_empty() => return Part::Any,
            Operator::OneOf | Operator::MatchAll | Operator::NoneOf if !values.is_empty() => {}
            _ => return Part::None(why.into()),
        }
    }
    let one = |id: &Id| id.vendor.map(|vendor| (vendor, id.product));
    match (operator, &values[..]) {
        (Operator::NoneOf, _) if values.iter().any(|id| id.vendor.is_none()) => {
            Part::None("means no device".into())
        }
        (Operator::NoneOf, _) => Part::Lost("has `id none-of`, which no rule here has".into()),
        (Operator::OneOf | Operator::MatchAll, _)
        | (Operator::Equals | Operator::EqualsOrdered, [_]) => {
            let ids: Option<Vec<_>> = values.iter().map(one).collect();
            ids.map_or(Part::Any, Part::These)
        }
        (Operator::AllOf, _) => {
            // The narrowest of them, if every other has it in itself.
            let narrow = values.iter().filter_map(one).max_by_key(|(_, product)| product.is_some());
            let Some((vendor, product)) = narrow else { return Part::Any };
            let fits = values
                .iter()
                .filter_map(one)
                .all(|(other, its)| other == vendor && its.is_none_or(|its| Some(its) == product));
            if fits { Part::These(vec![(vendor, product)]) } else { Part::None(ONE_ID.into()) }
        }
        _ => Part::None(ONE_ID.into()),
    }
}

const ONE_ID: &str = "asks for more than one `id`, and every device has one";

fn ports(set: Option<&Set<Vec<u8>>>) -> Part<String> {
    let port = |value| String::from_utf8(value).ok().filter(|port| is_port(port));
    texts(set, "via-port").map(port, "has a `via-port` that no device is at")
}

fn parents(written: &Written, known: Known<'_>) -> Part<String> {
    let allows = written.target == Target::Allow;
    match texts(written.parent_hash.as_ref(), "parent-hash") {
        Part::These(hashes) if allows && known.parents_as_ports => {
            let is_meant = |seen: &&Seen| hashes.iter().any(|one| one == seen.hash.as_bytes());
            let ports: Vec<_> =
                known.here.iter().filter(is_meant).flat_map(Seen::children).collect();
            if ports.is_empty() {
                return Part::Lost(
                    "has a `parent-hash` that nothing here has; plug it in and import again".into(),
                );
            }
            Part::These(ports)
        }
        Part::These(_) if allows => Part::Lost(
            "has a `parent-hash`, which no rule here has; --parents-as-ports carries it over as the ports \
             of what is plugged in here now"
                .into(),
        ),
        Part::These(_) => Part::Lost("has a `parent-hash`, which no rule here has".into()),
        part => part.map(|_| None, ""),
    }
}

fn connects(set: Option<&Set<Vec<u8>>>, allows: bool) -> Part<Connect> {
    let one = |value: &[u8]| match value {
        b"hardwired" => Some(Connect::Internal),
        b"hotplug" => Some(Connect::External),
        b"not used" => Some(Connect::Unused),
        b"unknown" => Some(Connect::Unknown),
        _ => None,
    };
    match texts(set, "with-connect-type") {
        Part::These(values) if !allows && values.iter().any(|value| one(value).is_none()) => {
            Part::Lost("has a `with-connect-type` that no rule here has".into())
        }
        part => part
            .map(|value| one(&value), "has a `with-connect-type` that no device here has; the kernel knows `hotplug`, `hardwired`, `not used` and `unknown`"),
    }
}

/// One value, as it is a matter of all interfaces of a device.
fn interfaces(set: Option<&Set<Pattern>>, allows: bool) -> Part<Interfaces> {
    let Some(Set { operator, values }) = set else { return Part::Any };
    let mut kinds = values.clone();
    kinds.sort();
    kinds.dedup();
    let none = Interfaces::default();
    let made = match operator {
        Operator::AllOf => Interfaces { all_of: Some(kinds), ..none },
        Operator::OneOf => Interfaces { one_of: Some(kinds), ..none },
        Operator::NoneOf => Interfaces { none_of: Some(kinds), ..none },
        Operator::MatchAll => Interfaces { only: Some(kinds), ..none },
        Operator::EqualsOrdered if allows && values.len() > 1 => {
            return Part::Lost(
                "has `with-interface equals-ordered`, and no rule here asks for an order; write `equals`, \
                 or name the device by `descriptors`"
                    .into(),
            );
        }
        // To USBGuard they are equal if each of the rule's is one of the device's, and there are as many:
        // with two kinds that overlap, others may be among them. Those are not let in here.
        Operator::Equals | Operator::EqualsOrdered if allows => {
            Interfaces { equals: Some(kinds), count: Some(values.len()), ..none }
        }
        Operator::Equals | Operator::EqualsOrdered => {
            Interfaces { all_of: Some(kinds), count: Some(values.len()), ..none }
        }
    };
    Part::These(vec![made])
}

/// Whether kinds of interface are asked to be equal of which one interface may be two.
fn overlap(set: &Set<Pattern>) -> bool {
    let meet = |one: &Pattern, other: &Pattern| {
        one.0.iter().zip(other.0).all(|pair| match pair {
            (Some(one), Some(other)) => *one == other,
            _ => true,
        })
    };
    let pairs =
        |(at, one): (usize, &Pattern)| set.values[..at].iter().any(|other| meet(one, other));
    matches!(set.operator, Operator::Equals | Operator::EqualsOrdered)
        && set.values.iter().enumerate().any(pairs)
}

/// Makes of each rule one for each of the values.
fn with<T: Clone>(made: &mut Vec<Rule>, values: Option<Vec<T>>, set: impl Fn(&mut Rule, T)) {
    let Some(values) = values else { return };
    // What is too much is counted, and not made.
    let most = MOST / made.len().max(1) + 1;
    let each = |rule: &Rule| {
        let one = |value: &T| {
            let mut rule = rule.clone();
            set(&mut rule, value.clone());
            rule
        };
        values.iter().take(most).map(one).collect::<Vec<_>>()
    };
    *made = made.iter().flat_map(each).collect();
}

/// The rules for the very devices that have these hashes, and what is not here.
fn by_hashes(made: &[Rule], hashes: &[Vec<u8>], here: &[Seen]) -> (Vec<Rule>, Vec<String>) {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for hash in hashes {
        let same: Vec<_> = here.iter().filter(|seen| seen.hash.as_bytes() == hash).collect();
        if same.is_empty() {
            missing.push(format!(
                "has the hash {}, which only USBGuard can compute, of no device that is plugged in here; \
                 plug it in and import again",
                String::from_utf8_lossy(hash)
            ));
        }
        for Seen { device, .. } in same {
            for rule in made {
                // What the rule says besides the hash has to be true of it as well.
                let anywhere = Rule { port: Vec::new(), connect: Vec::new(), ..rule.clone() };
                let rule = Rule {
                    id: Some((device.vendor, Some(device.product))),
                    serial: Some(device.serial.clone().unwrap_or_default()),
                    name: Some(device.name.clone()),
                    descriptors: Some(device.descriptors),
                    interfaces: None,
                    ..rule.clone()
                };
                if anywhere.matches(device) && !found.contains(&rule) {
                    found.push(rule);
                }
            }
        }
    }
    (found, missing)
}

//! What of an object is kept. The rest is skipped while it is read and never lies in memory.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::kinds::Kind;

/// What to keep of a value. Lists pass their rule on to what they hold.
#[derive(Debug)]
pub(super) enum Rule {
    /// All of it.
    All,
    /// These fields, by their own rules.
    Only(&'static [(&'static str, Self)]),
    /// All fields but these; those with a rule are cut by it.
    Except(&'static [(&'static str, Option<Self>)]),
    /// The entries of a map whose keys pass.
    Keys(fn(&str) -> bool),
}

use Rule::{All, Except, Keys, Only};

/// Metadata that people and controllers write, without its history. `resourceVersion` is taken out by who reads it.
const META: Rule = Except(&[
    ("managedFields", None),
    ("selfLink", None),
    ("annotations", Some(Keys(|key| key != "kubectl.kubernetes.io/last-applied-configuration"))),
]);

/// Annotations of kinds of which there are many: those of the mesh and of gateways.
const MESH_ANNOTATIONS: Rule =
    Keys(|key| key.split('/').next().is_some_and(|domain| domain.ends_with("istio.io") || domain == "aquifer.dev"));

const POD: Rule = Only(&[
    (
        "metadata",
        Only(&[
            ("name", All),
            ("namespace", All),
            ("uid", All),
            ("resourceVersion", All),
            ("generateName", All),
            ("creationTimestamp", All),
            ("deletionTimestamp", All),
            ("labels", All),
            ("annotations", MESH_ANNOTATIONS),
            (
                "ownerReferences",
                Only(&[("apiVersion", All), ("kind", All), ("name", All), ("uid", All), ("controller", All)]),
            ),
        ]),
    ),
    (
        "spec",
        Only(&[
            ("nodeName", All),
            ("serviceAccountName", All),
            ("hostNetwork", All),
            ("hostname", All),
            ("subdomain", All),
            ("containers", CONTAINER),
            ("initContainers", CONTAINER),
        ]),
    ),
    (
        "status",
        Only(&[
            ("phase", All),
            ("podIP", All),
            ("podIPs", All),
            ("conditions", Only(&[("type", All), ("status", All)])),
        ]),
    ),
]);

/// `restartPolicy` tells native sidecars from what ends before the pod starts; names tell mesh proxies.
const CONTAINER: Rule = Only(&[
    ("name", All),
    ("restartPolicy", All),
    ("ports", Only(&[("name", All), ("containerPort", All), ("protocol", All)])),
]);

const ENDPOINT_SLICE: Rule = Except(&[
    (
        "metadata",
        Some(Except(&[
            ("managedFields", None),
            ("selfLink", None),
            ("generation", None),
            ("generateName", None),
            // The time of the last change stands here: every change would be one.
            ("annotations", Some(MESH_ANNOTATIONS)),
        ])),
    ),
    ("endpoints", Some(Except(&[("hints", None), ("deprecatedTopology", None)]))),
]);

const OTHER: Rule = Except(&[("metadata", Some(META))]);

/// Kinds of which the metadata is all that anyone reads; the API server is asked for no more.
pub(super) fn metadata_only(kind: Kind) -> bool {
    matches!(kind, Kind::Namespace | Kind::Node | Kind::ServiceAccount)
}

/// A rule to read with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pruned(&'static Rule);

impl Pruned {
    /// What our readers need of a kind.
    pub(super) fn of(kind: Kind) -> Self {
        match kind {
            Kind::Pod => Self(&POD),
            Kind::EndpointSlice => Self(&ENDPOINT_SLICE),
            Kind::Node => Self(&NODE),
            _ => Self(&OTHER),
        }
    }

    /// All but the history.
    pub(super) fn all() -> Self {
        Self(&OTHER)
    }

    /// Names alone.
    pub(super) fn of_names() -> Self {
        Self(&NAMES)
    }

    /// Reads JSON by the rule.
    pub(super) fn read(self, text: &[u8]) -> Result<Value, serde_json::Error> {
        let mut reader = serde_json::Deserializer::from_slice(text);
        let value = self.deserialize(&mut reader)?;
        reader.end()?;
        Ok(value)
    }
}

/// Node agents write annotations all the time; localities are labels.
const NODE: Rule =
    Except(&[("metadata", Some(Except(&[("managedFields", None), ("annotations", Some(MESH_ANNOTATIONS))])))]);

const NAMES: Rule = Only(&[("metadata", Only(&[("name", All), ("resourceVersion", All)]))]);

impl Rule {
    /// The rule of a field; `None` for one that goes.
    fn field(&'static self, name: &str) -> Option<&'static Self> {
        match self {
            All => Some(&All),
            Only(fields) => fields.iter().find(|(known, _)| *known == name).map(|(_, rule)| rule),
            Except(fields) => match fields.iter().find(|(known, _)| *known == name) {
                None => Some(&All),
                Some((_, rule)) => rule.as_ref(),
            },
            Keys(passes) => passes(name).then_some(&All),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Pruned {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Pruned {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut kept = Map::new();
        while let Some(name) = map.next_key::<Cow<'de, str>>()? {
            match self.0.field(&name) {
                Some(rule) => {
                    let value = map.next_value_seed(Self(rule))?;
                    // A map of which nothing is kept is as one that was never there.
                    let is_cut = matches!(rule, Keys(_) | Only(_)) && value.as_object().is_some_and(Map::is_empty);
                    if !is_cut {
                        kept.insert(name.into_owned(), value);
                    }
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Value::Object(kept))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut kept = Vec::new();
        while let Some(value) = list.next_element_seed(self)? {
            kept.push(value);
        }
        Ok(Value::Array(kept))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

/// A list's page: its objects by the rule, and where the next one begins.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) items: Vec<Value>,
    pub(super) resource_version: String,
    pub(super) next: Option<String>,
}

impl Page {
    pub(super) fn read(text: &[u8], rule: Pruned) -> Result<Self, serde_json::Error> {
        let mut reader = serde_json::Deserializer::from_slice(text);
        let page = reader.deserialize_map(PageVisitor(rule))?;
        reader.end()?;
        Ok(page)
    }
}

struct PageVisitor(Pruned);

impl<'de> Visitor<'de> for PageVisitor {
    type Value = Page;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Page, A::Error> {
        let mut page = Page::default();
        while let Some(name) = map.next_key::<Cow<'de, str>>()? {
            match &*name {
                "metadata" => {
                    let meta: Value = map.next_value()?;
                    let text = |name: &str| meta[name].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
                    page.resource_version = text("resourceVersion").unwrap_or_default();
                    page.next = text("continue");
                }
                "items" => {
                    if let Value::Array(items) = map.next_value_seed(self.0)? {
                        page.items = items;
                    }
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(page)
    }
}

/// A watch's line: what happened, and the object by the rule.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) what: String,
    pub(super) object: Value,
}

impl Line {
    pub(super) fn read(text: &[u8], rule: Pruned) -> Result<Self, serde_json::Error> {
        let mut reader = serde_json::Deserializer::from_slice(text);
        let line = reader.deserialize_map(LineVisitor(rule))?;
        reader.end()?;
        Ok(line)
    }
}

struct LineVisitor(Pruned);

impl<'de> Visitor<'de> for LineVisitor {
    type Value = Line;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event of a watch")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Line, A::Error> {
        let mut line = Line { what: String::new(), object: Value::Null };
        while let Some(name) = map.next_key::<Cow<'de, str>>()? {
            match &*name {
                "type" => line.what = map.next_value()?,
                "object" => line.object = map.next_value_seed(self.0)?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(line)
    }
}

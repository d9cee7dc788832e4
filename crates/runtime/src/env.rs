//! The environment, read through a trait, with all errors reported at once.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::str::FromStr;
use std::time::Duration;

/// Where variables come from.
pub trait Env {
    /// The value of `key`, if it is set.
    fn var(&self, key: &str) -> Option<String>;
    /// All variables, sorted by name.
    fn all(&self) -> BTreeMap<String, String>;
}

/// The process's own environment. Values that are not UTF-8 count as unset.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessEnv;

impl Env for ProcessEnv {
    #[allow(clippy::disallowed_methods)]
    fn var(&self, key: &str) -> Option<String> {
        std::env::var(key).ok()
    }

    fn all(&self) -> BTreeMap<String, String> {
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect()
    }
}

/// Variables from a map, for tests and for embedding.
#[derive(Clone, Debug, Default)]
pub struct MapEnv(BTreeMap<String, String>);

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for MapEnv {
    fn from_iter<T: IntoIterator<Item = (K, V)>>(vars: T) -> Self {
        Self(vars.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }
}

impl<K: Into<String>, V: Into<String>, const N: usize> From<[(K, V); N]> for MapEnv {
    fn from(vars: [(K, V); N]) -> Self {
        vars.into_iter().collect()
    }
}

impl Env for MapEnv {
    fn var(&self, key: &str) -> Option<String> {
        self.0.get(key).cloned()
    }

    fn all(&self) -> BTreeMap<String, String> {
        self.0.clone()
    }
}

/// No variables at all, and a note of every one that is asked for: what holds a program's help to what it reads.
#[derive(Debug, Default)]
pub struct Asked(RefCell<BTreeSet<String>>);

impl Asked {
    /// What was asked for and is no word of `help`, in the order of the alphabet. What Kubernetes itself sets in every
    /// pod is nobody's setting.
    pub fn untold(self, help: &str) -> Vec<String> {
        let words: BTreeSet<&str> = help.split(|c: char| c.is_whitespace() || c == ',').collect();
        let asked = self.0.into_inner().into_iter().filter(|key| !key.starts_with("KUBERNETES_"));
        asked.filter(|key| !words.contains(key.as_str())).collect()
    }
}

impl Env for Asked {
    fn var(&self, key: &str) -> Option<String> {
        self.0.borrow_mut().insert(key.to_owned());
        None
    }

    fn all(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }
}

/// One variable that could not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VarError {
    /// The variable.
    pub key: String,
    /// What is wrong with it.
    pub message: String,
}

/// Every variable that could not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<VarError>);

impl Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid settings: ")?;
        for (i, error) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {}", error.key, error.message)?;
        }
        Ok(())
    }
}

/// Reads variables and remembers what was wrong, so that a person mends all of it in one go.
///
/// A faulty variable reads as its default until [`Vars::finish`] tells of it.
pub struct Vars<'a> {
    env: &'a dyn Env,
    errors: Vec<VarError>,
}

impl<'a> Vars<'a> {
    /// A reader of `env`.
    pub fn new(env: &'a dyn Env) -> Self {
        Self { env, errors: Vec::new() }
    }

    /// The text of `key`, if it is set (it may be empty).
    pub fn string(&mut self, key: &str) -> Option<String> {
        self.env.var(key)
    }

    /// The text of `key`, or `default`.
    pub fn string_or(&mut self, key: &str, default: &str) -> String {
        self.env.var(key).unwrap_or_else(|| default.to_owned())
    }

    /// The text of `key`; unset or empty is an error.
    pub fn required(&mut self, key: &str) -> String {
        match self.env.var(key) {
            Some(value) if !value.is_empty() => value,
            _ => {
                self.error(key, "must be set");
                String::new()
            }
        }
    }

    /// `key` parsed, or `default` where it is unset or empty.
    pub fn parsed<T>(&mut self, key: &str, default: T) -> T
    where
        T: FromStr,
        T::Err: Display,
    {
        self.optional(key).unwrap_or(default)
    }

    /// `key` parsed, if it is set and not empty.
    pub fn optional<T>(&mut self, key: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: Display,
    {
        self.with(key, |text| text.parse().map_err(|e: T::Err| format!("{text:?}: {e}")))
    }

    /// A duration as Go writes it: "10s", "1h30m", "1.5s", "100ms"; or `default`.
    pub fn duration(&mut self, key: &str, default: Duration) -> Duration {
        self.optional_duration(key).unwrap_or(default)
    }

    /// A duration, if `key` is set and not empty.
    pub fn optional_duration(&mut self, key: &str) -> Option<Duration> {
        self.with(key, parse_duration)
    }

    /// A truth value as Go's `strconv.ParseBool` reads it, or `default`.
    pub fn bool(&mut self, key: &str, default: bool) -> bool {
        self.with(key, parse_bool).unwrap_or(default)
    }

    /// All variables that start with `prefix`, which is cut from their names.
    pub fn with_prefix(&mut self, prefix: &str) -> BTreeMap<String, String> {
        self.env
            .all()
            .into_iter()
            .filter_map(|(key, value)| {
                let rest = key.strip_prefix(prefix)?;
                (!rest.is_empty()).then(|| (rest.to_owned(), value))
            })
            .collect()
    }

    /// `key` read by `parse`, if it is set and not empty; its error is remembered.
    pub fn with<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let text = self.env.var(key).filter(|text| !text.is_empty())?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(message) => {
                self.error(key, message);
                None
            }
        }
    }

    /// Adds an error that only the caller can see, such as two settings that exclude each other.
    pub fn error(&mut self, key: &str, message: impl Into<String>) {
        self.errors.push(VarError { key: key.to_owned(), message: message.into() });
    }

    /// All errors so far, or none.
    pub fn finish(self) -> Result<(), ConfigErrors> {
        if self.errors.is_empty() { Ok(()) } else { Err(ConfigErrors(self.errors)) }
    }
}

/// Reads a duration in Go's notation.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("{text:?} is not a duration such as \"10s\" or \"1h30m\"");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut total = 0.0_f64;
    if rest.is_empty() {
        return Err(invalid());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(invalid)?;
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let seconds = match &rest[..unit] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            // Not Go's, but what people write for certificate lifetimes.
            "d" => 86400.0,
            _ => return Err(invalid()),
        };
        total += number * seconds;
        rest = &rest[unit..];
    }
    // Go's longest, 292 years: a point in time that far off can still be told.
    let longest = Duration::from_nanos(i64::MAX as u64);
    Duration::try_from_secs_f64(total).ok().filter(|duration| *duration <= longest).ok_or_else(invalid)
}

fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => Err(format!("{other:?} is neither true nor false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_errors_are_told_at_once() {
        let env = MapEnv::from([("PORT", "many"), ("TTL", "10 parsecs"), ("ON", "perhaps"), ("GOOD", "7")]);
        let mut vars = Vars::new(&env);
        assert_eq!(vars.parsed("PORT", 1_u16), 1);
        assert_eq!(vars.duration("TTL", Duration::from_secs(3)), Duration::from_secs(3));
        assert!(vars.bool("ON", true));
        assert_eq!(vars.parsed("GOOD", 1_u16), 7);
        assert_eq!(vars.required("NODE_NAME"), "");
        let errors = vars.finish().unwrap_err();
        let keys: Vec<_> = errors.0.iter().map(|e| e.key.as_str()).collect();
        assert_eq!(keys, ["PORT", "TTL", "ON", "NODE_NAME"]);
        let text = errors.to_string();
        assert!(text.contains("NODE_NAME: must be set"), "{text}");
        assert!(text.contains("\"many\""), "{text}");
    }

    #[test]
    fn unset_and_empty_read_as_default() {
        let env = MapEnv::from([("EMPTY", "")]);
        let mut vars = Vars::new(&env);
        assert_eq!(vars.parsed("EMPTY", 5_u16), 5);
        assert_eq!(vars.string("EMPTY").as_deref(), Some(""));
        assert_eq!(vars.string("UNSET"), None);
        assert_eq!(vars.string_or("UNSET", "x"), "x");
        assert_eq!(vars.optional::<u16>("UNSET"), None);
        assert!(vars.finish().is_ok());
    }

    #[test]
    fn a_prefix_is_cut() {
        let env =
            MapEnv::from([("ISTIO_META_CLUSTER_ID", "c1"), ("ISTIO_META_", "nameless"), ("ISTIO_METAJSON_X", "{}")]);
        let got = Vars::new(&env).with_prefix("ISTIO_META_");
        assert_eq!(got, BTreeMap::from([("CLUSTER_ID".to_owned(), "c1".to_owned())]));
    }

    #[test]
    fn durations_are_gos() {
        let table: &[(&str, Option<Duration>)] = &[
            ("10s", Some(Duration::from_secs(10))),
            ("5m", Some(Duration::from_secs(300))),
            ("1h30m", Some(Duration::from_secs(5400))),
            ("1.5s", Some(Duration::from_millis(1500))),
            ("100ms", Some(Duration::from_millis(100))),
            ("250us", Some(Duration::from_micros(250))),
            ("24h0m0s", Some(Duration::from_secs(86400))),
            ("90d", Some(Duration::from_secs(90 * 86400))),
            ("0", Some(Duration::ZERO)),
            ("10", None),
            ("s", None),
            ("-1s", None),
            ("1x", None),
            ("1..2s", None),
            ("1e99h", None),
            ("2562047h", Some(Duration::from_secs(2_562_047 * 3600))),
            ("2562048h", None),
            ("99999999999999h", None),
        ];
        for (text, expect) in table {
            assert_eq!(parse_duration(text).ok(), *expect, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,24}") {
            let _ = parse_duration(&text);
        }
    }
}

//! Authorization policies, L4.
//!
//! A policy matches when any rule does; a rule when all its clauses do; a clause when any of its matches does;
//! a match when every field that is set does. No rules: never. No clauses: always. No matches: always. No fields: never.

use std::{fmt, str::FromStr, sync::Arc};

use ipnet::IpNet;

use crate::address::{NotNamespaced, split_namespaced};

/// A policy's name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyKey {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

/// An L4 authorization policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub key: PolicyKey,
    pub scope: Scope,
    pub action: Action,
    pub rules: Vec<Rule>,
    /// Reports what it would do, and does nothing.
    pub dry_run: bool,
}

/// Which workloads a policy applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    Global,
    Namespace,
    /// The workloads that name it.
    WorkloadSelector,
}

/// What a policy does to what it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Allow,
    Deny,
}

/// Matches when all of its clauses do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    pub clauses: Vec<Clause>,
}

/// Matches when any of its matches does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Clause {
    pub matches: Vec<Match>,
}

/// Each field that is not empty must hold: one of its values matches, or for `not_` none does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Match {
    pub namespaces: Vec<StringMatch>,
    pub not_namespaces: Vec<StringMatch>,
    pub principals: Vec<StringMatch>,
    pub not_principals: Vec<StringMatch>,
    pub source_ips: Vec<IpNet>,
    pub not_source_ips: Vec<IpNet>,
    pub destination_ips: Vec<IpNet>,
    pub not_destination_ips: Vec<IpNet>,
    pub destination_ports: Vec<u16>,
    pub not_destination_ports: Vec<u16>,
    pub service_accounts: Vec<ServiceAccountMatch>,
    pub not_service_accounts: Vec<ServiceAccountMatch>,
}

/// How a text is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StringMatch {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Suffix(Arc<str>),
    /// Anything but the empty string.
    Presence,
}

/// A service account of a namespace, whatever its trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccountMatch {
    pub namespace: Arc<str>,
    pub service_account: Arc<str>,
}

impl PolicyKey {
    /// A name of two parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

/// `<namespace>/<name>`.
impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PolicyKey {
    type Err = NotNamespaced;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, name) = split_namespaced(text)?;
        Ok(Self::new(namespace, name))
    }
}

impl Match {
    /// Whether no field is set.
    pub fn is_empty(&self) -> bool {
        let Self {
            namespaces,
            not_namespaces,
            principals,
            not_principals,
            source_ips,
            not_source_ips,
            destination_ips,
            not_destination_ips,
            destination_ports,
            not_destination_ports,
            service_accounts,
            not_service_accounts,
        } = self;
        [namespaces, not_namespaces, principals, not_principals].iter().all(|field| field.is_empty())
            && [source_ips, not_source_ips, destination_ips, not_destination_ips].iter().all(|field| field.is_empty())
            && [destination_ports, not_destination_ports].iter().all(|field| field.is_empty())
            && [service_accounts, not_service_accounts].iter().all(|field| field.is_empty())
    }
}

impl StringMatch {
    /// Whether `text` is meant.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => text == &**exact,
            Self::Prefix(prefix) => text.starts_with(&**prefix),
            Self::Suffix(suffix) => text.ends_with(&**suffix),
            Self::Presence => !text.is_empty(),
        }
    }
}

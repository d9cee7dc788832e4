//! Which names a query may mean. Pure.
//!
//! A pod's resolver tries its search list by itself, so a short name arrives here as the full one, and an external one
//! arrives with a search domain behind it first. Both are undone here, so that the first question is the last.

use std::collections::HashSet;

/// Longest name in text, without the final dot (RFC 1035: 255 octets on the wire).
const LONGEST: usize = 253;

/// A name that the query may mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What to look up: lower case, no final dot.
    pub name: String,
    /// What was left of the query when a search domain was taken off it, if one was.
    pub stripped: Option<String>,
}

/// All names that `query`, asked in `namespace`, may mean, the likeliest first.
#[must_use]
pub fn candidates(query: &str, namespace: &str, domain: &str) -> Vec<Candidate> {
    let mut list = List::default();
    list.add(query, None);
    list.add_expanded(query, None, namespace, domain);
    for search in [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()] {
        if let Some(stripped) = strip(query, &search) {
            list.add(stripped, Some(stripped));
            list.add_expanded(stripped, Some(stripped), namespace, domain);
        }
    }
    list.names
}

/// The hostnames that answer for `name`: itself, then each wildcard above it, the nearest first.
pub fn hostnames(name: &str) -> impl Iterator<Item = String> + '_ {
    let parents = name.match_indices('.').map(|(at, _)| format!("*{}", &name[at..]));
    std::iter::once(name.to_owned()).chain(parents)
}

#[derive(Default)]
struct List {
    names: Vec<Candidate>,
    seen: HashSet<String>,
}

impl List {
    fn add(&mut self, name: &str, stripped: Option<&str>) {
        if name.len() <= LONGEST && self.seen.insert(name.to_owned()) {
            self.names.push(Candidate { name: name.to_owned(), stripped: stripped.map(str::to_owned) });
        }
    }

    /// The forms in which Kubernetes names a Service, or a pod of a headless one, completed.
    fn add_expanded(&mut self, name: &str, stripped: Option<&str>, namespace: &str, domain: &str) {
        let of_service = name.ends_with(".svc");
        match name.split('.').count() {
            1 => self.add(&format!("{name}.{namespace}.svc.{domain}"), stripped),
            2 => {
                self.add(&format!("{name}.svc.{domain}"), stripped);
                self.add(&format!("{name}.{namespace}.svc.{domain}"), stripped);
            }
            3 => {
                if of_service {
                    self.add(&format!("{name}.{domain}"), stripped);
                }
                self.add(&format!("{name}.svc.{domain}"), stripped);
            }
            4 if of_service => self.add(&format!("{name}.{domain}"), stripped),
            _ => {}
        }
    }
}

fn strip<'a>(name: &'a str, domain: &str) -> Option<&'a str> {
    let rest = name.strip_suffix(domain)?.strip_suffix('.')?;
    (!rest.is_empty()).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Canonical text: `name` or `name<stripped`.
    fn check(query: &str, expected: &[&str]) {
        let found: Vec<String> = candidates(query, "shop", "cluster.local")
            .into_iter()
            .map(|c| c.stripped.map_or(c.name.clone(), |stripped| format!("{}<{stripped}", c.name)))
            .collect();
        assert_eq!(found, expected, "{query}");
    }

    #[test]
    fn short_names_are_completed() {
        check("web", &["web", "web.shop.svc.cluster.local"]);
        check("web.bar", &["web.bar", "web.bar.svc.cluster.local", "web.bar.shop.svc.cluster.local"]);
        check("web.bar.svc", &["web.bar.svc", "web.bar.svc.cluster.local", "web.bar.svc.svc.cluster.local"]);
        check("a.b.c", &["a.b.c", "a.b.c.svc.cluster.local"]);
        check("p.web.bar.svc", &["p.web.bar.svc", "p.web.bar.svc.cluster.local"]);
        check("a.b.c.d", &["a.b.c.d"]);
        check("a.b.c.d.svc", &["a.b.c.d.svc"]);
    }

    #[test]
    fn search_domains_are_taken_off() {
        check(
            "example.com.shop.svc.cluster.local",
            &[
                "example.com.shop.svc.cluster.local",
                "example.com<example.com",
                "example.com.svc.cluster.local<example.com",
                "example.com.shop<example.com.shop",
                "example.com.shop.svc<example.com.shop.svc",
            ],
        );
        check(
            "www.example.com.cluster.local",
            &[
                "www.example.com.cluster.local",
                "www.example.com<www.example.com",
                "www.example.com.svc.cluster.local<www.example.com",
            ],
        );
        // Another namespace's search domain isn't ours to take off.
        let other = candidates("example.com.bar.svc.cluster.local", "shop", "cluster.local");
        assert!(other.iter().all(|c| c.stripped.as_deref() != Some("example.com")), "{other:?}");
    }

    #[test]
    fn a_full_name_stays_first() {
        let found = candidates("web.shop.svc.cluster.local", "shop", "cluster.local");
        assert_eq!(found[0], Candidate { name: "web.shop.svc.cluster.local".into(), stripped: None });
    }

    #[test]
    fn the_domain_itself_is_not_nothing() {
        check(
            "cluster.local",
            &["cluster.local", "cluster.local.svc.cluster.local", "cluster.local.shop.svc.cluster.local"],
        );
        assert_eq!(strip("xcluster.local", "cluster.local"), None);
    }

    #[test]
    fn names_too_long_for_the_wire_are_left_out() {
        let long = ["a".repeat(63), "b".repeat(63), "c".repeat(60), "d".repeat(55)].join(".");
        assert!(candidates(&long[..244], "shop", "cluster.local").iter().all(|c| c.name.len() <= LONGEST));
        assert_eq!(candidates(&"a".repeat(240), "shop", "cluster.local").len(), 1);
    }

    #[test]
    fn wildcards_go_upwards() {
        let found: Vec<_> = hostnames("a.b.example.com").collect();
        assert_eq!(found, ["a.b.example.com", "*.b.example.com", "*.example.com", "*.com"]);
        assert_eq!(hostnames("web").collect::<Vec<_>>(), ["web"]);
    }
}

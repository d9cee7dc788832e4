//! The benchmarks, by name.

mod headers;
mod mesh;
mod tunnel;

use anyhow::{Context, Result};

/// All of them.
pub(crate) const ALL: &[(&str, fn())] = &[
    ("resolve_service", mesh::resolve_service),
    ("resolve_workload", mesh::resolve_workload),
    ("resolve_unknown", mesh::resolve_unknown),
    ("pick_10", mesh::pick_10),
    ("pick_1000", mesh::pick_1000),
    ("inbound_route", mesh::inbound_route),
    ("authorize_without_policies", mesh::authorize_without_policies),
    ("authorize_10_policies", mesh::authorize_10_policies),
    ("xds_workload", mesh::xds_workload),
    ("authority_print", headers::authority_print),
    ("authority_parse", headers::authority_parse),
    ("baggage_print", headers::baggage_print),
    ("baggage_parse", headers::baggage_parse),
    ("traceparent_child_print", headers::traceparent_child_print),
    ("traceparent_parse", headers::traceparent_parse),
    ("tunnel_connect", tunnel::connect),
    ("tunnel_1k", tunnel::message_1k),
    ("tunnel_64k", tunnel::message_64k),
];

/// Runs one.
///
/// # Errors
/// When there is none of that name.
pub(crate) fn run(name: &str) -> Result<()> {
    let found = ALL.iter().find(|(known, _)| *known == name);
    let (_, bench) = found.with_context(|| {
        let names: Vec<_> = ALL.iter().map(|(name, _)| *name).collect();
        format!("{name:?} is no benchmark: take one of {}", names.join(", "))
    })?;
    bench();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_benchmark_runs() {
        for (name, _) in ALL {
            run(name).unwrap();
        }
        assert!(run("nonsense").unwrap_err().to_string().starts_with("\"nonsense\" is no benchmark: take one of res"));
    }
}

//! Trust domains as SPIFFE has them (SPIFFE-ID, section 2.1).

use super::{MeshConfig, MeshConfigError};

/// Bytes of a trust domain.
const LONGEST: usize = 255;

/// Refuses a trust domain that no identity can have: certificates of it would be everybody's loss.
pub(super) fn check(config: &MeshConfig) -> Result<(), MeshConfigError> {
    let own = config.trust_domain.iter().map(|domain| ("trustDomain".to_owned(), domain));
    let aliases =
        config.trust_domain_aliases.iter().enumerate().map(|(i, alias)| (format!("trustDomainAliases[{i}]"), alias));
    match own.chain(aliases).find(|(_, domain)| !is_trust_domain(domain)) {
        None => Ok(()),
        Some((field, domain)) => {
            let message = format!(
                "{domain:?} is no SPIFFE trust domain: write a name such as \"example.org\", of at most {LONGEST} \
                 lower-case letters, digits, \".\", \"-\" and \"_\""
            );
            Err(MeshConfigError { field, line: 0, message })
        }
    }
}

fn is_trust_domain(domain: &str) -> bool {
    let letter = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'.' | b'-' | b'_');
    (1..=LONGEST).contains(&domain.len()) && domain.bytes().all(letter)
}

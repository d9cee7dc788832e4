//! W3C trace context, version 00. <https://www.w3.org/TR/trace-context/>

use std::{fmt, str::FromStr};

use rand::{Rng, RngExt};

use super::HeaderError;

/// `00-<32 hex>-<16 hex>-<2 hex>`.
const LEN: usize = 55;
/// A later version may append fields to it.
const MAX_LEN: usize = 512;

/// A span of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Traceparent {
    /// Not 0.
    pub trace_id: u128,
    /// Not 0.
    pub parent_id: u64,
    pub flags: u8,
}

impl Traceparent {
    /// The start of a trace, not sampled.
    pub fn random(rng: &mut impl Rng) -> Self {
        Self { trace_id: rng.random_range(1..=u128::MAX), parent_id: rng.random_range(1..=u64::MAX), flags: 0 }
    }

    /// A further span of the same trace.
    pub fn child(self, rng: &mut impl Rng) -> Self {
        Self { parent_id: rng.random_range(1..=u64::MAX), ..self }
    }
}

impl fmt::Display for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.parent_id, self.flags)
    }
}

impl FromStr for Traceparent {
    type Err = HeaderError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_LEN {
            return Err(HeaderError::TooLong(MAX_LEN));
        }
        parse(text).ok_or(HeaderError::Malformed)
    }
}

fn parse(text: &str) -> Option<Traceparent> {
    let (known, rest) = text.split_at_checked(LEN)?;
    let mut fields = known.split('-');
    let version = hex(fields.next()?, 2)?;
    let trace_id = hex(fields.next()?, 32)?;
    let parent_id = hex(fields.next()?, 16)?;
    let flags = hex(fields.next()?, 2)?;
    let complete = fields.next().is_none()
        && match version {
            0 => rest.is_empty(),
            0xff => false,
            _ => rest.is_empty() || rest.starts_with('-'),
        };
    (complete && trace_id != 0 && parent_id != 0).then_some(Traceparent {
        trace_id,
        parent_id: u64::try_from(parent_id).ok()?,
        flags: u8::try_from(flags).ok()?,
    })
}

/// Lower case and of exact length, as the standard demands.
fn hex(text: &str, len: usize) -> Option<u128> {
    let digits = text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    digits.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    #[test]
    fn reads_version_0_and_what_later_versions_keep_of_it() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(good.parse::<Traceparent>().unwrap().to_string(), good);
        assert!(format!("01{}-more", &good[2..]).parse::<Traceparent>().is_ok());
        for bad in [
            String::new(),
            format!("{good}-more"),
            format!("ff{}", &good[2..]),
            format!("01{}more", &good[2..]),
            good.to_uppercase(),
            good.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            good.replace("00f067aa0ba902b7", &"0".repeat(16)),
            good.replace('-', "_"),
            good[..54].to_owned(),
            format!("01{}-{}", &good[2..], "a".repeat(600)),
        ] {
            assert!(bad.parse::<Traceparent>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,80}") {
            let _ = text.parse::<Traceparent>();
        }

        #[test]
        fn fresh_ones_round_trip(seed: u64) {
            let mut rng = StdRng::seed_from_u64(seed);
            let fresh = Traceparent::random(&mut rng);
            let child = fresh.child(&mut rng);
            prop_assert_eq!(fresh.to_string().len(), LEN);
            prop_assert_eq!(child.trace_id, fresh.trace_id);
            prop_assert_eq!(fresh.to_string().parse::<Traceparent>(), Ok(fresh));
        }
    }
}

//! What rides on a CONNECT, printed and parsed.

use std::hint::black_box;

use aquifer_core::hbone::{Authority, Baggage, Traceparent};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::mesh;
use crate::meter::measure;

const AUTHORITY: &str = "10.1.2.3:8080";
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn authority() -> Authority {
    AUTHORITY.parse().expect("an authority")
}

pub(super) fn authority_print() {
    let authority = authority();
    measure(|| black_box(&authority).to_string());
}

pub(super) fn authority_parse() {
    measure(|| black_box(AUTHORITY).parse::<Authority>());
}

pub(super) fn baggage_print() {
    let workload = mesh::workload(7);
    measure(|| Baggage::of(black_box(&workload)).to_string());
}

pub(super) fn baggage_parse() {
    let text = Baggage::of(&mesh::workload(7)).to_string();
    measure(|| black_box(text.as_str()).parse::<Baggage>());
}

pub(super) fn traceparent_child_print() {
    let mut rng = StdRng::seed_from_u64(1);
    let parent: Traceparent = TRACEPARENT.parse().expect("a traceparent");
    measure(|| black_box(parent).child(&mut rng).to_string());
}

pub(super) fn traceparent_parse() {
    measure(|| black_box(TRACEPARENT).parse::<Traceparent>());
}

//! What is counted, and what is not.

use std::hint::black_box;

/// The name of the function inside which instructions are counted.
pub(crate) const COUNTED: &str = "aquifer_icount_counted";
/// The function runs so often while it is counted: what differs from round to round evens out.
pub(crate) const ROUNDS: u64 = 100;

/// Runs `body` once uncounted, for what is made on first use, and then so that callgrind counts it.
pub(crate) fn measure<T>(mut body: impl FnMut() -> T) {
    black_box(body());
    counted(&mut || {
        black_box(body());
    });
}

// SAFETY: no other symbol has this name, and nothing looks it up but callgrind.
#[allow(unsafe_code)]
#[unsafe(export_name = "aquifer_icount_counted")]
#[inline(never)]
fn counted(body: &mut dyn FnMut()) {
    for _ in 0..ROUNDS {
        body();
    }
}

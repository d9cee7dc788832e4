//! Tests that need more than one crate: the shape of the dependency graph, and the lab.
//!
//! ```text
//! tests/arrows.rs    what may depend on what, read from `cargo metadata`
//! tests/lab/…        real namespaces, real kernels, real programs (root)
//! mutants.toml       lines whose loss a test must notice; examples/mutants.rs breaks them one by one
//! ```

pub mod mutants;

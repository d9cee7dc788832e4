//! Real Envoy sidecars in a lab's pods: the baseline.

//! The codes of findings.

use super::Level;

/// What sort of finding.
#[derive(Debug, PartialEq, Eq)]
pub struct Code {
    /// `AQ0001`, …
    pub code: &'static str,
    /// One CamelCase word.
    pub name: &'static str,
    /// How bad it is.
    pub level: Level,
}

macro_rules! codes {
    ($($constant:ident: $code:literal $name:literal $level:ident;)*) => {
        $(pub(super) const $constant: &Code = &Code { code: $code, name: $name, level: Level::$level };)*

        /// Every code, in order.
        pub const CODES: &[&Code] = &[$($constant),*];
    };
}

codes! {
    NOT_SUPPORTED: "AQ0001" "NotSupported" Warning;
    NOT_YET: "AQ0002" "NotEnforcedYet" Warning;
    NO_WAYPOINT: "AQ0003" "NoWaypoint" Warning;
    UNKNOWN_HOST: "AQ0004" "UnknownHost" Error;
    TARGET_NOT_FOUND: "AQ0005" "TargetNotFound" Error;
    NO_HOSTS: "AQ0006" "NoHosts" Error;
    HOST_CONFLICT: "AQ0007" "HostConflict" Error;
    INVALID_TARGET: "AQ0008" "InvalidTarget" Error;
    FIELD_WITHOUT_EFFECT: "AQ0009" "FieldWithoutEffect" Warning;
    UNENFORCEABLE_DENY: "AQ0010" "UnenforceableDeny" Error;
    PARTLY_ENFORCED: "AQ0011" "PartlyEnforced" Warning;
    POLICY_NOT_ENFORCED: "AQ0012" "PolicyNotEnforced" Error;
    WAYPOINT_NOT_BOUND: "AQ0013" "WaypointNotBound" Error;
    CANARY_NOT_BOUND: "AQ0014" "CanaryNotBound" Warning;
    DEPRECATED_FIELD: "AQ0015" "DeprecatedField" Warning;
    INVALID_VALUE: "AQ0016" "InvalidValue" Error;
    PRINCIPAL_WITH_SCHEME: "AQ0017" "PrincipalWithScheme" Error;
    BLOCKS_INBOUND: "AQ0020" "NetworkPolicyBlocksInboundTunnels" Error;
    BLOCKS_OUTBOUND: "AQ0021" "NetworkPolicyBlocksOutboundTunnels" Error;
    PORTS_UNSEEN: "AQ0022" "NetworkPolicyPortsUnseen" Warning;
    CONFIG_INVALID: "AQ0030" "MeshConfigInvalid" Error;
    CONFIG_WITHOUT_EFFECT: "AQ0031" "MeshConfigFieldWithoutEffect" Warning;
    SUBSET_WITHOUT_PODS: "AQ0040" "SubsetWithoutPods" Warning;
    SUBSET_NOT_DEFINED: "AQ0041" "SubsetNotDefined" Error;
    BACKEND_NOT_FOUND: "AQ0042" "BackendNotFound" Error;
    OVERLAPPING_ROUTES: "AQ0043" "OverlappingRoutes" Warning;
    OVERLAPPING_RULES: "AQ0044" "OverlappingDestinationRules" Warning;
    SELECTOR_WITHOUT_PODS: "AQ0045" "SelectorWithoutPods" Warning;
    REFERENCE_NOT_GRANTED: "AQ0046" "ReferenceNotGranted" Error;
    MANIFEST_INVALID: "AQ0050" "ManifestInvalid" Error;
    OTHER: "AQ0099" "Other" Warning;
}

/// The code of a name.
pub(super) fn by_name(name: &str) -> &'static Code {
    CODES.iter().find(|code| code.name == name).copied().unwrap_or(OTHER)
}

impl Code {
    /// That of a manifest that cannot be read: whoever reads manifests says so.
    pub fn manifest_invalid() -> &'static Self {
        MANIFEST_INVALID
    }
}

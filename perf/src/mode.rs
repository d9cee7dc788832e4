//! What stands between client and server.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::sidecar::SidecarKind;

/// How the pods' traffic goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Plain TCP.
    None,
    /// A ztunnel per node.
    Ambient,
    /// The same with other binaries or settings (`--base`, `--set-base`), to compare two builds in one run.
    Base,
    /// Ztunnels and a waypoint.
    Waypoint,
    /// An Envoy per pod that carries TCP.
    SidecarTcp,
    /// An Envoy per pod that carries HTTP.
    SidecarHttp,
}

impl Mode {
    /// All of them, in the order of the report.
    pub const ALL: [Self; 6] =
        [Self::None, Self::Ambient, Self::Base, Self::Waypoint, Self::SidecarTcp, Self::SidecarHttp];

    /// As options and results name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Ambient => "ambient",
            Self::Base => "base",
            Self::Waypoint => "waypoint",
            Self::SidecarTcp => "sidecar-tcp",
            Self::SidecarHttp => "sidecar-http",
        }
    }

    /// As the report names it.
    pub fn title(self) -> &'static str {
        match self {
            Self::None => "no mesh",
            Self::Ambient => "Aquifer ambient (L4)",
            Self::Base => "Aquifer ambient, other build",
            Self::Waypoint => "Aquifer ambient with waypoint",
            Self::SidecarTcp => "Envoy sidecars, TCP",
            Self::SidecarHttp => "Envoy sidecars, HTTP",
        }
    }

    /// Whether the lab runs the mesh.
    pub fn is_mesh(self) -> bool {
        matches!(self, Self::Ambient | Self::Base | Self::Waypoint)
    }

    /// The Envoys that the pods get.
    pub(crate) fn sidecars(self) -> Option<SidecarKind> {
        match self {
            Self::SidecarTcp => Some(SidecarKind::Tcp),
            Self::SidecarHttp => Some(SidecarKind::Http),
            _ => None,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|mode| mode.name() == text).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|mode| mode.name()).collect();
            format!("`{text}` is no mode: {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_print_and_parse() {
        for mode in Mode::ALL {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert!("sidecar".parse::<Mode>().unwrap_err().contains("sidecar-tcp"));
    }
}

//! The MeshConfig: what it overrules takes effect at once.

use aquifer_objects::mesh_config::{MeshConfig, MeshConfigError, NoEffect, parse};

use super::Index;
use crate::translate::Mesh;
use crate::translate::waypoint::Key;

/// What holds for the whole mesh, and what came of the MeshConfig.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MeshChange {
    /// What holds.
    pub mesh: Mesh,
    /// The MeshConfig that was last read.
    pub config: MeshConfig,
    /// Its fields that change nothing.
    pub without_effect: Vec<NoEffect>,
    /// Why the one that stands there cannot be read; the last good one stays in force.
    pub error: Option<MeshConfigError>,
}

impl Index {
    /// What holds for the whole mesh, and what came of the MeshConfig.
    pub fn mesh_config(&self) -> MeshChange {
        MeshChange { mesh: self.mesh.clone(), ..self.config.clone() }
    }

    /// Whether a ConfigMap holds the MeshConfig.
    pub(super) fn is_mesh_config(&self, (namespace, name): &Key) -> bool {
        **namespace == *self.base.system_namespace && **name == *self.base.config_map
    }

    /// Takes a MeshConfig in, or forgets it.
    pub(super) fn set_mesh_config(&mut self, text: Option<&str>) {
        let before = self.config.clone();
        match parse(text.unwrap_or_default()) {
            Ok((config, without_effect)) => {
                self.config = MeshChange { config, without_effect, ..MeshChange::default() };
            }
            Err(error) => self.config.error = Some(error),
        }
        if self.config == before {
            return;
        }
        self.mesh_changed = true;
        let mut mesh = self.base.overruled(&self.config.config);
        // The network is the namespace's to say.
        mesh.network.clone_from(&self.mesh.network);
        if mesh != self.mesh {
            self.mesh = mesh;
            self.mesh_changed();
        }
    }
}

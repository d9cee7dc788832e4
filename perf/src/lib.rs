//! What the mesh costs, measured in the lab against no mesh and against sidecars.

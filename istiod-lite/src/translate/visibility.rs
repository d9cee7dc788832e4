//! Who may see a ServiceEntry: the mesh's administrator decides, by the labels of its namespace
//! (`MeshConfig.serviceEntryVisibility`). The entry's own `exportTo` counts for nothing in ambient mode.

use aquifer_proto::workload::service::Visibility as Sent;

use super::labels::{LabelSet, Selector};

/// Who sees a ServiceEntry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Visibility {
    /// Everybody.
    #[default]
    Public,
    /// Its own namespace.
    Namespace,
    /// Nobody: it is not sent.
    None,
}

impl Visibility {
    /// As it stands in a Service.
    pub fn message(self) -> i32 {
        match self {
            Self::Public | Self::None => Sent::Public,
            Self::Namespace => Sent::Namespace,
        }
        .into()
    }

    /// As a condition names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Public => "Public",
            Self::Namespace => "Namespace",
            Self::None => "None",
        }
    }
}

/// The rules, in order; the first whose selectors all match decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Where no rule matches.
    pub default: Visibility,
    /// Each with its selectors of namespaces. One that cannot be understood matches nothing.
    pub rules: Vec<(Visibility, Vec<Option<Selector>>)>,
}

impl Rules {
    /// The visibility of a namespace's entries.
    pub fn of(&self, namespace: &LabelSet) -> Visibility {
        let matches = |selectors: &[Option<Selector>]| {
            selectors.iter().all(|selector| selector.as_ref().is_some_and(|selector| selector.selects(namespace)))
        };
        self.rules.iter().find(|(_, selectors)| matches(selectors)).map_or(self.default, |(visibility, _)| *visibility)
    }
}
